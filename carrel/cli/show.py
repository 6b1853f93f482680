"""What ``run`` and ``watch`` print: events and notices for a person, or one JSON object a line.

How an event reads is ``render.py``'s, and when a streamed text is written ``flow.py``'s.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from carrel.cli.flow import Flow, Piece, piece_of
from carrel.cli.output import Printer
from carrel.cli.render import clean, describe, notice_text
from carrel.cli.result import Said, result_text
from carrel.client import ConnectionState, Event, Notice, Phase

__all__ = ["Show"]

# Ids begin with the time: it is their ends that differ.
_LABEL: Final = 8
_REASON: Final = 200
_DIM: Final = "2"


class Show:
    """Prints events for a person, with the seconds since the start, or as one JSON object a line.

    A context manager: at its end what was held back of a streamed text is printed. Without an event loop around it,
    held text is printed with the next thing that is, or at the end.

    Args:
        as_json: JSON is what is wanted.
        labels: Whether each line begins with the end of its run's id, because there may be several runs.
    """

    def __init__(self, *, as_json: bool, labels: bool = False) -> None:
        self.as_json = as_json
        self.printer = Printer()
        self._labels = labels
        self._said = Said()
        self._lost = False
        self._began = time.monotonic()
        self._flow = Flow(_Lines(self))
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    @property
    def holds(self) -> bool:
        """Whether something that came has not been printed."""
        return self._flow.holds

    def flush(self) -> None:
        """Print what is held back, and end its line."""
        self._flow.flush()
        self._arm()

    def item(self, item: Event | Notice) -> None:
        """One event or notice."""
        if self.as_json:
            body = item.to_json() if isinstance(item, Event) else dict(item.body)
            self.json(body)
        elif isinstance(item, Event):
            self._event(item)
        elif text := notice_text(item):
            self.text(text)

    def connection(self, state: ConnectionState) -> None:
        """The connection was lost, or is there again."""
        if state.phase is Phase.WAITING:
            self._lost = True
            again = f"trying again in {state.retry_s:.1f} s"
            self._note(state, f"connection lost: {clean(state.reason, _REASON)}; {again}")
        elif state.phase is Phase.CONNECTED and self._lost:
            self._lost = False
            self._note(state, "connected again")

    def _note(self, state: ConnectionState, text: str) -> None:
        if self.as_json:
            body = {"phase": state.phase.value, "reason": state.reason, "retry_s": round(state.retry_s, 3)}
            self.json({"type": "connection", **body, "failures": state.failures})
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """Something about the command itself: beside the events, not among them."""
        self.flush()
        print(f"carrel: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- for the person

    def text(self, text: str, label: str = "") -> None:
        """Lines for a person."""
        self.flush()
        first, *rest = text.split("\n")
        self.printer.say(self.margin(time.monotonic(), label) + first)
        for part in rest:
            self.printer.say(self.margin(None, label) + part)

    def margin(self, at: float | None, label: str) -> str:
        """What a line begins with: the time, when it has one of its own, and the label."""
        clock = self.printer.paint(f"{at - self._began:7.2f}", _DIM) if at is not None else f"{'':7}"
        return f"{clock}  " + (self.printer.paint(label, _DIM) + "  " if label else "")

    def label_of(self, run_id: str) -> str:
        """The end of a run's id, where lines are labelled."""
        return clean(run_id)[-_LABEL:] if self._labels else ""

    def _arm(self) -> None:
        """Have what is held printed in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due := self._flow.due) is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._flow.tick()
        self._arm()

    def _event(self, event: Event) -> None:
        piece = piece_of(event)
        if piece is not None:
            self._said.take(event)
            self._flow.add(piece)
            self._arm()
            return
        self.flush()
        self._flow.other(event)
        label = self.label_of(event.run_id)
        line = describe(event)
        self.text(self.printer.paint(line.text, line.style) if line.style else line.text, label)
        said = self._said.take(event)
        if event.terminal and (result := result_text(event.data, already=said)):
            self.text(result, label)

    def json(self, body: Mapping[str, Any]) -> None:
        """One object for a machine."""
        self.printer.say(json.dumps(body, ensure_ascii=False, separators=(",", ":")))


class _Lines:
    """Writes streamed text between the other lines of a ``Show``."""

    def __init__(self, show: Show) -> None:
        self._show = show

    def begin(self, piece: Piece, at: float | None, *, named: bool) -> None:
        printer = self._show.printer
        bullet = ("  · " if at is not None else "    ") if piece.thought else ""
        name = f"{piece.who}: " if named else ""
        printer.put(self._show.margin(at, self._show.label_of(piece.owner[0])) + printer.paint(bullet + name, _DIM))

    def put(self, piece: Piece, text: str) -> None:
        printer = self._show.printer
        between = "\n" + self._show.margin(None, self._show.label_of(piece.owner[0])) + "    " * piece.thought
        parts = text.split("\n")
        printer.put(between.join(printer.paint(part, _DIM) if piece.thought and part else part for part in parts))

    def end(self) -> None:
        self._show.printer.say()
