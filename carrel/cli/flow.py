"""Streamed answers and thoughts as flowing text: which pieces are written when, so that a reader gets lines.

A piece is held back until a line of its text is whole, something else happens, or half a second has passed; then it
goes on where the text before it ended. One stream at a time has the open line: others wait until that line ends, or its
stream has been silent for half a second. What a line begins with and where it goes is the writer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from carrel.cli.render import clean
from carrel.client.models import Event

__all__ = ["HOLD_S", "Flow", "Piece", "Writer", "piece_of"]

HOLD_S: Final = 0.5
# Characters: of one stream that has to wait for another; beyond, it interrupts.
_MOST: Final = 2_000
# Streams: beyond, the oldest is written and forgotten. Those whose end was never told would stay.
_MOST_STREAMS: Final = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed text: ``owner`` is the run and the request that says it, ``stream`` the text within it.

    ``who`` names the owner for a reader who saw somebody else's line last.
    """

    owner: tuple[str, str]
    stream: tuple[str, ...]
    who: str
    thought: bool
    text: str


class Writer(Protocol):
    """Where the text goes."""

    def begin(self, piece: Piece, at: float | None, *, named: bool) -> None:
        """A line of this stream begins; ``named``: it must be said whose it is.

        ``at`` is when the line's first piece came; None when the stream's line before is right above.
        """

    def put(self, piece: Piece, text: str) -> None:
        """Go on with the line that was begun; ``text`` may have line ends inside, none at its end."""

    def end(self) -> None:
        """The line ends."""


def piece_of(event: Event) -> Piece | None:
    """The piece that an event is; None when it is something whole."""
    data = event.data
    thought = event.event_type == "agent_thinking"
    message_id = str(data.get("message_id") or "")
    if thought and data.get("delta"):
        text = clean(data.get("text") or "")
    elif event.event_type == "agent_message" and data.get("delta"):
        text = clean(data["delta"])
    elif event.event_type == "agent_message" and data.get("text") and event.attempt > 1:
        # What an attempt before has begun to say is said anew, and may go on in pieces.
        text = clean(data["text"])
    else:
        return None
    operation = event.request_id.removeprefix(event.parent_request_id + "_") if event.parent_request_id else ""
    agent = event.agent_name or "agent"
    # Of two sub-agents of one name at once the second is words_2.
    who = clean(operation if operation.startswith(agent) else agent)
    owner = (event.run_id, event.request_id)
    return Piece(owner, (*owner, str(event.attempt), event.event_type, message_id), who, thought, text)


@dataclass(slots=True)
class _Stream:
    piece: Piece
    held: str = ""
    since: float = 0.0
    last: float = 0.0

    def ready(self, now: float) -> bool:
        return bool(self.held) and ("\n" in self.held or now >= self.since + HOLD_S or len(self.held) >= _MOST)


class Flow:
    """Holds pieces back and writes them.

    Args:
        writer: Where to.
        clock: Seconds, monotonic.
    """

    def __init__(self, writer: Writer, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._clock = clock
        self._streams: dict[tuple[str, ...], _Stream] = {}
        self._open: _Stream | None = None
        self._above: _Stream | None = None  # whose line was written last, with nothing else below it
        self._shown: tuple[str, str] | None = None  # whom the last line was about

    @property
    def holds(self) -> bool:
        """Whether something that came has not been written."""
        return any(stream.held for stream in self._streams.values())

    @property
    def due(self) -> float | None:
        """When ``tick`` has something to write, by the clock; None while nothing is held."""
        return min((self._due(stream) for stream in self._streams.values() if stream.held), default=None)

    def add(self, piece: Piece) -> None:
        """A piece has come."""
        now = self._clock()
        stream = self._streams.get(piece.stream)
        if stream is None:
            if len(self._streams) >= _MOST_STREAMS:
                self._forget(next(iter(self._streams)))
            stream = self._streams[piece.stream] = _Stream(piece)
        if not stream.held:
            stream.since = now
        stream.held += piece.text
        stream.last = now
        self.tick()

    def tick(self) -> None:
        """Write what has been held long enough."""
        now = self._clock()
        for stream in sorted(self._streams.values(), key=self._turn):
            if stream.ready(now) and self._may_write(stream, now):
                late = now >= stream.since + HOLD_S or len(stream.held) >= _MOST
                whole = len(stream.held) if late else stream.held.rindex("\n") + 1
                self._write(stream, whole)
                stream.since = now

    def flush(self) -> None:
        """Write everything that is held, and end the line: something else is about to be shown."""
        for stream in sorted(self._streams.values(), key=self._turn):
            if stream.held:
                self._write(stream, len(stream.held))
        self._close()
        self._above = None

    def other(self, event: Event) -> None:
        """An event that is no piece: ``flush`` came before it, and what it is about has ended its texts."""
        owner = (event.run_id, event.request_id)
        ended = [
            key
            for key, stream in self._streams.items()
            if stream.piece.owner == owner or (event.terminal and key[0] == event.run_id)
        ]
        for key in ended:
            self._forget(key)
        self._shown = owner

    def _turn(self, stream: _Stream) -> tuple[bool, float]:
        return stream is not self._open, stream.since

    def _due(self, stream: _Stream) -> float:
        held_until = stream.since + HOLD_S
        if self._open is None or self._open is stream:
            return held_until
        return max(held_until, self._open.last + HOLD_S)

    def _may_write(self, stream: _Stream, now: float) -> bool:
        if self._open is None or self._open is stream:
            return True
        return now >= self._open.last + HOLD_S or len(stream.held) >= _MOST

    def _write(self, stream: _Stream, characters: int) -> None:
        text, stream.held = stream.held[:characters], stream.held[characters:]
        if self._open is not stream:
            self._close()
            owner = stream.piece.owner
            at = None if self._above is stream else stream.since
            self._writer.begin(stream.piece, at, named=self._shown is not None and self._shown != owner)
            self._open = self._above = stream
            self._shown = owner
        ends = text.endswith("\n")
        self._writer.put(stream.piece, text[:-1] if ends else text)
        if ends:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open = None
            self._writer.end()

    def _forget(self, key: tuple[str, ...]) -> None:
        stream = self._streams[key]
        if stream.held:
            self._write(stream, len(stream.held))
        if self._open is stream:
            self._close()
        del self._streams[key]
