"""What a reader of the socket keeps in mind: its position, what it has given already, what the gateway last said.

Pure bookkeeping, without a connection, so that every split of a stream can be tried in a test.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.client.models import Event, Position
from carrel.error_base import from_dict
from carrel.errors import CarrelError, ProtocolError

__all__ = ["Notice", "Reader"]

# As many as a log keeps: after a reset, everything that is kept may come again.
_REMEMBERED: Final = 10_000
_SILENT: Final = frozenset({"ping", "pong", "refreshed"})


@dataclass(frozen=True, slots=True)
class Notice:
    """A control frame that answers no command: ``reset``, ``gap``, ``error``, ``bye`` …"""

    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """Args:
    resume: Where the first connection is to begin; None for the top of the log.
    filtered: Whether only a part of the log is read, so that offsets may skip.
    """

    def __init__(self, resume: Position | None = None, *, filtered: bool = False) -> None:
        self.position = resume or Position()
        self.duplicates = 0
        self.resets = 0
        self.holes = 0
        self.retry_s = 0.0
        self._resumes = resume is not None
        self._filtered = filtered
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._error: CarrelError | None = None
        self._expect_any = False

    def resume(self) -> dict[str, Any]:
        """The part of a ``connect`` frame that says where to go on."""
        if not self._resumes:
            return {}
        here = self.position
        if here.offset == 0 or not here.usable:
            # An offset that was only told (by ``connected`` or ``reset``) has no event_id to compare: everything is
            # read again, and what lies before it is dropped here.
            return {"resume": {"offset": 0}}
        return {"resume": {"epoch": here.epoch, "offset": here.offset, "event_id": here.event_id}}

    def begin(self) -> None:
        """A new connection begins: what the one before said about its end is past."""
        self._error = None
        self.retry_s = 0.0

    def connected(self, frame: Mapping[str, Any]) -> None:
        """The gateway said ``connected``."""
        epoch = str(frame.get("epoch") or "")
        if not self._resumes:
            self.position = Position(epoch, int(frame.get("offset") or 0), str(frame.get("event_id") or ""))
            self._resumes = True
        elif epoch and epoch != self.position.epoch:
            # Offsets of another epoch say nothing here; what was given already is known by its event_id.
            self.position = Position(epoch)
            self._expect_any = True

    def take(self, frame: Mapping[str, Any]) -> Iterator[Event | Notice]:
        """What a frame brings that has not been given yet.

        Raises:
            ProtocolError: An event is malformed.
        """
        kind = frame.get("event_type")
        if kind == "event_batch":
            events = frame.get("events")
            if not isinstance(events, list):
                raise ProtocolError("the server sent an event_batch without its events")
            for body in events:
                yield from self._event(body)
        elif kind is not None:
            yield from self._event(frame)
        else:
            yield from self._control(str(frame.get("type")), frame)

    def refusal(self, close_code: int) -> CarrelError:
        """Why the gateway closed for good."""
        if self._error is not None:
            return self._error
        return CarrelError(f"the gateway closed the connection with code {close_code}")

    def _event(self, body: Mapping[str, Any]) -> Iterator[Event]:
        event = Event.from_json(body, self.position.epoch)
        last = self.position.offset
        if event.offset <= last:
            self.duplicates += 1
            return
        if event.offset != last + 1 and not self._filtered and not self._expect_any:
            self.holes += 1
        self._expect_any = False
        self.position = event.position
        if event.event_id in self._seen:
            self.duplicates += 1
            return
        self._seen[event.event_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        yield event

    def _control(self, kind: str, frame: Mapping[str, Any]) -> Iterator[Notice]:
        if kind in _SILENT:
            return
        if kind == "reset":
            self.resets += 1
            self.position = Position(str(frame.get("epoch") or ""), int(frame.get("offset") or 0))
            self._expect_any = True
        elif kind == "gap":
            self._expect_any = True
        elif kind == "error":
            self._error = from_dict(frame)
        elif kind == "bye":
            self.retry_s = float(frame.get("retry_ms") or 0) / 1000
        yield Notice(kind, frame)
