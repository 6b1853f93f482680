"""What a reader of a stream keeps in mind: its position, what it has given already, what the gateway last said.

Pure bookkeeping, without a connection, so that every split of a stream can be tried in a test. The rules: every offset
is explained, by an event, ``through``, ``gap`` or ``reset``. Offsets that jump unexplained are asked for once more, by
coming back with the position (``AstrayError``); when they are still not there, the application is told by a ``Gap``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from carrel.client.decoding import bodies_of
from carrel.client.models import Event, Position
from carrel.client.notices import Bye, Gap, Notice, Reset, notice_of
from carrel.error_base import from_dict
from carrel.errors import CarrelError, ProtocolError

__all__ = ["AstrayError", "Notice", "Reader"]

# As many as a log keeps: after a reset, everything that is kept may come again.
_REMEMBERED: Final = 10_000
_SILENT: Final = frozenset({"pong", "refreshed"})


class AstrayError(Exception):
    """What came does not fit what is known; coming back with the position lets the log decide."""


class Reader:
    """Args:
    resume: Where the first connection is to begin; None for the top of the log.
    filtered: Whether only a part of the log is read, so that the stream's end may lie below the log's.
    explained: Whether what is left out is told (``through``), so that a jump of offsets is a loss.
    repeat: Whether what was given before a reset is given again after it.
    """

    def __init__(
        self, resume: Position | None = None, *, filtered: bool = False, explained: bool = True, repeat: bool = False
    ) -> None:
        self.position = resume or Position()
        self.duplicates = 0
        self.resets = 0
        # Jumps of offsets that nothing explained, mended ones included.
        self.holes = 0
        self.bye: Bye | None = None
        # The highest offset that the present stream has told, repeated ones included: as far as may be acknowledged.
        self.heard = 0
        self._resumes = resume is not None
        self._filtered = filtered
        self._explained = explained
        self._repeat = repeat
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._error: CarrelError | None = None
        self._due: int | None = None
        self._asked_for = 0
        self._reset_due = False
        self._user_id = ""

    def resume(self) -> dict[str, Any]:
        """The part of a ``connect`` frame that says where to go on."""
        if not self._resumes:
            return {}
        here = self.position
        if not here.usable:
            # An offset that was only told (by ``connected`` or ``reset``) has no event_id to compare: everything is
            # read again, and what lies before it is dropped here.
            return {"resume": {"offset": 0}}
        if here.offset == 0:
            return {"resume": {"epoch": here.epoch, "offset": 0}}
        return {"resume": {"epoch": here.epoch, "offset": here.offset, "event_id": here.event_id}}

    def begin(self) -> None:
        """A new connection begins: what the one before said about its end is past."""
        self._error = None
        self.bye = None
        self._due = None
        self._reset_due = False

    @property
    def retry_s(self) -> float:
        """How long the gateway asked to wait before coming back."""
        return self.bye.retry_s if self.bye is not None else 0.0

    def connected(self, frame: Mapping[str, Any]) -> list[Notice]:
        """The gateway said ``connected``; notices of what that means for the reader's position.

        Raises:
            ProtocolError: It does not say where it begins.
        """
        told = _place(frame, "connected")
        before, comparable = self.position, self.position.usable
        self.heard, self._due = told.offset, told.offset + 1
        if not self._resumes:
            self.position, self._resumes = told, True
        elif frame.get("recovered") is False and comparable:
            # The position stays until the reset that follows is here: a connection lost in between loses nothing.
            self._reset_due = True
        elif before.epoch not in {"", told.epoch}:
            # Everything was asked for, since there was nothing to compare, and it is another log's.
            return [self._reset({"type": "reset", "reason": "epoch_changed", **_fields(told)})]
        elif told.offset > before.offset:
            self.position = told
            if before.epoch:
                return [self._gap(before.offset + 1, told.offset)]
        elif not before.epoch:
            self.position = told
        return []

    def take(self, frame: Mapping[str, Any]) -> Iterator[Event | Notice | Position]:
        """What a frame brings that has not been given yet; a position where it brought nothing but progress.

        Raises:
            ProtocolError: Something is malformed, or breaks the protocol's promises.
            AstrayError: The position must be compared with the log again.
        """
        if frame.get("event_type") is not None:
            for body in bodies_of(frame):
                yield from self._event(body)
        else:
            yield from self._control(str(frame.get("type")), frame)

    def refusal(self, close_code: int) -> CarrelError:
        """Why the gateway closed for good."""
        if self._error is not None:
            return self._error
        return CarrelError(
            f"the gateway closed the connection with code {close_code}", advice="docs/protocol.md lists the codes"
        )

    def _event(self, body: Mapping[str, Any]) -> Iterator[Event | Gap | Position]:
        event = Event.from_json(body, self.position.epoch)
        if self._user_id not in {"", event.user_id}:
            raise ProtocolError("the gateway sent an event of another user; nothing of it was kept")
        self._user_id = event.user_id
        if self._reset_due:
            raise ProtocolError("the gateway did not say from where on the log goes on before it sent an event")
        here = self.position
        if event.offset == here.offset and here.event_id not in {"", event.event_id}:
            raise ProtocolError(f"the gateway sent another event for the offset {event.offset}")
        if self._due is not None and event.offset > self._due and self._explained:
            yield from self._hole(self._due, event.offset - 1)
        self._due = max(event.offset + 1, self._due or 0)
        self.heard = max(self.heard, event.offset)
        if event.offset <= here.offset:
            self.duplicates += 1
            yield here
            return
        self.position = event.position
        if event.event_id in self._seen:
            self.duplicates += 1
            yield self.position
            return
        self._seen[event.event_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        yield event

    def _hole(self, first: int, last: int) -> Iterator[Gap]:
        self.holes += 1
        if self._asked_for != first:
            self._asked_for = first
            raise AstrayError(f"the events {first} to {last} did not come")
        yield self._gap(first, last)

    def _gap(self, first: int, last: int) -> Gap:
        return Gap("gap", {"type": "gap", "from": first, "to": last, "announced": False})

    def _control(self, kind: str, frame: Mapping[str, Any]) -> Iterator[Notice | Position]:
        if kind in _SILENT:
            return
        if kind == "ping":
            self._compare(frame)
            return
        if kind == "through":
            yield from self._through(_place(frame, kind))
            return
        if kind == "reset":
            yield self._reset(frame)
            return
        notice = notice_of(frame)
        if isinstance(notice, Gap):
            yield from self._pass(notice)
        elif kind == "error":
            self._error = from_dict(frame)
        elif isinstance(notice, Bye):
            self.bye = notice
        yield notice

    def _reset(self, frame: Mapping[str, Any]) -> Reset:
        told = _place(frame, "reset")
        self.resets += 1
        if told.offset == self.position.offset and not told.event_id:
            # The entries stay, under another epoch: the last one is still the last one, which resuming compares.
            told = Position(told.epoch, told.offset, self.position.event_id)
        self.position, self._due, self.heard = told, told.offset + 1, told.offset
        self._reset_due = False
        if self._repeat:
            self._seen.clear()
        return Reset("reset", frame)

    def _through(self, place: Position) -> Iterator[Position]:
        if place.epoch != self.position.epoch:
            raise AstrayError("the log goes on under another epoch")
        self._due = max(place.offset + 1, self._due or 0)
        self.heard = max(self.heard, place.offset)
        if place.offset > self.position.offset:
            self.position = place
        yield self.position

    def _pass(self, gap: Gap) -> Iterator[Gap]:
        """Offsets that the log does not have: those after them are due."""
        if self._due is None or gap.last < self._due:
            return
        if gap.first > self._due and self._explained:
            yield from self._hole(self._due, gap.first - 1)
        self._due, self.heard = gap.last + 1, max(self.heard, gap.last)

    def _compare(self, ping: Mapping[str, Any]) -> None:
        """``ping`` tells how far the stream has come; whoever is not there has lost its end, or the log has."""
        epoch, offset = ping.get("epoch"), ping.get("offset")
        if not epoch or type(offset) is not int or self._reset_due:
            return
        if epoch != self.position.epoch:
            raise AstrayError("the log goes on under another epoch")
        if offset < self.heard:
            raise AstrayError(f"the log ends at {offset}, and {self.heard} was read")
        if offset > self.heard and not self._filtered:
            raise AstrayError(f"the events {self.heard + 1} to {offset} did not come")


def _place(frame: Mapping[str, Any], kind: str) -> Position:
    epoch, offset, event_id = frame.get("epoch"), frame.get("offset"), frame.get("event_id")
    if not isinstance(epoch, str) or type(offset) is not int or offset < 0:
        raise ProtocolError(f"the gateway sent {kind} without a position")
    return Position(epoch, offset, event_id if isinstance(event_id, str) else "")


def _fields(position: Position) -> dict[str, Any]:
    return {"epoch": position.epoch, "offset": position.offset, "event_id": position.event_id}
