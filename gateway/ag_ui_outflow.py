"""What a reader of AG-UI is sent: the same writer over the same cursor as other server-sent events, in AG-UI's words.

Each event's id says after how many events of which entry of the log it comes, so that a reader can come back after any
of them: the run is read from its first entry again, and what the reader has is made again and left out. Reading, order,
bounds and stalls are ``outflow``'s; what entries become is ``ag_ui_mapping``'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from carrel.errors import InvalidRequestError
from carrel.v1 import execution_pb2
from carrel.wire import error_from_proto
from gateway.ag_ui_mapping import Event, Translation
from gateway.encoding import Frame
from gateway.ring import Place
from gateway.run_json import run_status
from gateway.sockets import Ending
from gateway.sse import parse_position, position_id, retry_after_ms
from gateway.sse_outflow import Course, SseOutflow

__all__ = ["AgUiOutflow", "Passed", "parse_id"]

_COUNT: Final = re.compile(r"[1-9][0-9]{0,5}")
_RUN: Final = re.compile(r"[!-.0-9;-~]{1,128}")
_LOST: Final = "what you have read is not what the log has now"


@dataclass(frozen=True, slots=True)
class Passed:
    """What a reader has: everything up to the ``count``-th event of the entry at ``place`` of this run of ours."""

    count: int
    run_id: str
    place: Place


def parse_id(text: str, name: str) -> Passed:
    """An id that a reader sends back.

    Args:
        text: What it sent.
        name: The header, for the message.

    Raises:
        InvalidRequestError: It is none.
    """
    count, _, rest = text.partition(":")
    run_id, _, position = rest.partition(":")
    if not (_COUNT.fullmatch(count) and _RUN.fullmatch(run_id) and position):
        problem = "must be the id of the last event as it came"
        raise InvalidRequestError(
            f"{name} {problem}", advice="or leave it out, for the run from its first event", fields={name: problem}
        )
    return Passed(int(count), run_id, parse_position(position, name))


class AgUiOutflow(SseOutflow):
    """Args:
    course: See ``SseOutflow``.
    translation: What entries become.
    passed: What the reader has; None for a reader that begins.
    beyond: Whether that is more than the log has of the run.
    replayed: Is told how many entries it went through that were there before it.
    """

    def __init__(
        self,
        course: Course,
        *,
        translation: Translation,
        passed: Passed | None,
        beyond: bool = False,
        replayed: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__(course)
        self._replayed = replayed
        self._old = course.feed.ring.top_offset
        self._translation = translation
        self._passed = passed
        # Whether the reader's run has begun; what is to be told of the stream itself once it has; the last offset read.
        self._begun = passed is not None
        self._notes: list[bytes] = []
        self._high = 0
        if beyond:
            self.put(b"".join(self._lost("beyond_top")))

    # What is said besides entries.

    def say(self, kind: str, **fields: Any) -> None:
        """Nothing: readers of AG-UI know no ``connected`` and no ``run_state``."""

    def beat(self) -> None:
        """Give a sign of life: a comment, which no reader takes for an event."""
        self.put(b": ping\n\n")

    def farewell(self, ending: Ending) -> None:
        """The stream's end before the run's, as an error; the record is named ``bye`` for those who come back."""
        if self._ended:
            return
        code, error = ending.code, ending.error
        reason, wait_ms = code.name.lower(), retry_after_ms(ending)
        told = f"{error.message}; {error.advice}" if error is not None else f"the stream ended: {reason}"
        events = self._translation.break_off(
            f"STREAM_{code.name}",
            f"{told}; the run goes on, and the same request with Last-Event-ID reads on",
            close_code=int(code),
            reason=reason,
            reconnect=code.reconnect,
            retry_ms=wait_ms,
        )
        self.put(b"".join(_record(event, name=b"bye") for event in events))

    def gone(self, run: execution_pb2.Run) -> None:
        """Tell the end from what is known of the run: the log will never have it."""
        if self._ended:
            return
        if self._passed is not None:
            self.put(b"".join(self._lost("trimmed")))
            return
        result = orjson.loads(run.result_json) if run.result_json else None
        error = error_from_proto(run.error).to_dict() if run.HasField("error") else None
        self._close_with(self._translation.conclude(run_status(run), result, error))

    def _close_with(self, events: Sequence[Event]) -> None:
        self._ended = True
        self.put(b"".join(self._with_notes(list(map(_record, events)))))

    def note(self, name: str, value: Any) -> bytes:
        """Something about the stream itself, in no log and without an id; kept until the reader's run has begun."""
        record = _record({"type": "CUSTOM", "name": f"carrel.{name}", "value": value})
        if self._begun:
            return record
        self._notes.append(record)
        return b""

    def _with_notes(self, records: list[bytes]) -> list[bytes]:
        """The records that begin a run, and what waited for them: nothing may come after its end."""
        if self._begun or not records:
            return records
        self._begun = True
        notes, self._notes = self._notes, []
        return [*records[:-1], *notes, records[-1]] if self._translation.ended else [*records, *notes]

    # Entries.

    def _wires(self, items: Sequence[Frame | Place]) -> list[bytes]:
        written: list[bytes] = []
        old = 0
        for item in items:
            if isinstance(item, Place):
                continue
            old += item.offset <= self._old
            written += self._entry(item)
            if self._translation.ended:
                self._ended = True
                self._on_end()
                break
        if old:
            self._replayed(old)
        return written

    def _entry(self, frame: Frame) -> list[bytes]:
        events = self._translation.feed(_loaded(frame.wire[frame.head :]))
        passed, self._high = self._passed, frame.offset
        skipped = 0
        if passed is not None:
            if frame.offset < passed.place.offset:
                # Past the end of the reader's run, there is nothing that it can have.
                return self._lost("beyond_top") if self._translation.ended else []
            if frame.offset > passed.place.offset or frame.event_id != passed.place.event_id:
                return self._lost("event_mismatch")
            skipped, self._passed = passed.count, None
        place = position_id(Place(self._cursor.place.epoch, frame.offset, frame.event_id))
        run_id = frame.run_id
        numbered = list(enumerate(events, 1))[skipped:]
        return self._with_notes([_record(event, f"{number}:{run_id}:{place}".encode()) for number, event in numbered])

    def _lost(self, reason: str) -> list[bytes]:
        """The end of a stream whose reader has what is not so: nothing that could follow would be right."""
        advice = "the run goes on: send the request again without Last-Event-ID for what is kept of it, from its begin"
        events = self._translation.break_off("EVENTS_LOST", f"{_LOST}; {advice}", reason=reason)
        self._ended = True
        self._on_end()
        return [self._reset_note(reason), *map(_record, events)]

    def _reset_note(self, reason: str) -> bytes:
        place = self._cursor.place
        return self.note("reset", {"reason": reason, "epoch": place.epoch, "offset": place.offset})

    def _reset(self, reason: str) -> bytes:
        _ = super()._reset(reason)  # which counts it
        # Another epoch over the same entries takes nothing back; nor is anything lost to one who has nothing.
        unread = not self._high and self._passed is None
        if unread or (reason == "epoch_changed" and self._cursor.place.offset >= self._high):
            return self._reset_note(reason)
        return b"".join(self._lost(reason))

    def _gap(self, first: int, last: int) -> bytes:
        return self.note("gap", {"from": first, "to": last})


def _record(event: Event, number: bytes = b"", *, name: bytes = b"") -> bytes:
    head = (b"id: %b\n" % number if number else b"") + (b"event: %b\n" % name if name else b"")
    return b"%bdata: %b\n\n" % (head, orjson.dumps(event))


def _loaded(payload: bytes | memoryview) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = orjson.loads(payload)
    except ValueError:
        # JSON that the stricter parser does not take, such as half a surrogate pair: shown with marks in its place.
        text = json.dumps(json.loads(bytes(payload)), ensure_ascii=False)
        entry = orjson.loads(text.encode("utf-8", "replace"))
    return entry
