"""What a producer has sent and not yet seen in the log: a window over its numbers, go-back-N.

Numbers only: no clock, no network, no decision about when to send.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final, NamedTuple

from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.events_pb2 import Event

__all__ = ["Held", "Slice", "Window"]

_ENVELOPE: Final = 160  # about what an event's ids, names and time take on the wire


class Held(NamedTuple):
    """An event that is kept; ``context`` is a child's own, None for the producer's."""

    event: Event
    context: UserExecutionContext | None
    size: int


class Slice(NamedTuple):
    """Consecutive events of one context."""

    first: int
    events: list[Event]
    context: UserExecutionContext | None
    size: int


class Window:
    """Events ``acked`` + 1 … ``next`` - 1, of which those from ``cursor`` on are yet to be sent (again)."""

    __slots__ = ("_held", "acked", "cursor", "next", "size")

    def __init__(self) -> None:
        self._held: deque[Held] = deque()
        self.size = 0
        self.acked = 0
        self.next = 1
        self.cursor = 1

    def __len__(self) -> int:
        return len(self._held)

    @property
    def unsent(self) -> bool:
        """Whether something is to be sent."""
        return self.cursor < self.next

    def start_at(self, number: int) -> None:
        """The first event will have this number: those before it were acknowledged in an earlier life."""
        self.acked = number - 1
        self.cursor = self.next = number

    def add(self, event: Event, context: UserExecutionContext | None, data_size: int) -> None:
        """Keep an event whose number is ``next``."""
        size = data_size + _ENVELOPE
        self._held.append(Held(event, context, size))
        self.size += size
        self.next += 1

    def release(self, through: int) -> bool:
        """Forget everything up to ``through``; whether that is any progress."""
        through = min(through, self.next - 1)
        if through <= self.acked:
            return False
        for _ in range(through - self.acked):
            self.size -= self._held.popleft().size
        self.acked = through
        self.cursor = max(self.cursor, through + 1)
        return True

    def rewind(self, last_number: int) -> None:
        """Send again from after ``last_number``; never forward, never into what is acknowledged."""
        self.cursor = max(self.acked + 1, min(last_number + 1, self.cursor))

    def slice(self, max_events: int, max_bytes: int) -> Slice:
        """The next consecutive events with one context, at least one; moves the cursor past them."""
        start = self.cursor - self.acked - 1
        head = self._held[start]
        events, size = [head.event], head.size
        for held in islice(self._held, start + 1, start + max_events):
            if held.context is not head.context or size + held.size > max_bytes:
                break
            events.append(held.event)
            size += held.size
        first = self.cursor
        self.cursor += len(events)
        return Slice(first, events, head.context, size)
