"""Values that pass between the emitter's layers: batches, limits, verdicts. No rules, no protobuf."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from carrel.errors import CarrelError
from servicekit.telemetry.tracing import NO_SPAN, Span

__all__ = ["Batch", "Limits", "Listener", "Offer", "ProducerState", "Refused", "UserQueue", "Verdict", "VerdictKind"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is held for the log, in events and bytes.

    Args:
        user_events: Held for one user, queued and unacknowledged together.
        user_bytes: The same in bytes.
        total_bytes: Held for all users.
        turn_events: Sent for one user before it is another's turn.
        user_window: Sent for one user and not yet acknowledged; the rest waits here, where it delays nobody.
        total_window: The same for all users.
        producers: Producers remembered at once.
        remember_s: How long an idle producer is remembered.
    """

    user_events: int = 1000
    user_bytes: int = 4 * 1024 * 1024
    total_bytes: int = 64 * 1024 * 1024
    turn_events: int = 100
    user_window: int = 256
    total_window: int = 4096
    producers: int = 100_000
    remember_s: float = 60.0


class Listener(Protocol):
    """One who hears what became of a producer's events: an Emit stream, or a Notify call."""

    @property
    def producers(self) -> set[ProducerState]:
        """The producers that it is registered with."""
        ...

    def known(self, producer: ProducerState) -> None:
        """The producer's events up to ``producer.acked`` are in the log already."""

    def refused(self, user_id: str, producer_id: str, error: CarrelError, last_number: int) -> None:
        """An item was not taken; the producer goes on after ``last_number``, where it may go on."""

    def forward(self, user_id: str, producer_id: str, ack: Any) -> None:
        """The bridge's own word, as it came."""


class UserQueue:
    """What is held for one user: ``queued`` waits for its turn, ``flying`` was sent and is unacknowledged, in order."""

    __slots__ = ("bytes", "events", "flying", "flying_events", "listed", "producers", "queued", "touched", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.queued: deque[Batch] = deque()
        self.flying: dict[Batch, None] = {}
        self.flying_events = 0
        self.events = 0
        self.bytes = 0
        self.producers = 0
        self.listed = False
        self.touched = 0.0


class ProducerState:
    """What is known of one producer: ``accepted`` is the last number taken, ``acked`` the last one known to be logged.

    ``pending`` are its batches, queued and flying, in order. Until ``strict_until`` a number that does not follow
    ``accepted`` is refused even when nothing is pending.
    """

    __slots__ = (
        "accepted",
        "acked",
        "epoch",
        "fence",
        "listeners",
        "offset",
        "pending",
        "producer_id",
        "run_id",
        "strict_until",
        "touched",
        "user",
    )

    def __init__(self, user: UserQueue, producer_id: str, run_id: str, accepted: int, fence: int = 0) -> None:
        self.user = user
        self.fence = fence
        self.producer_id = producer_id
        self.run_id = run_id
        self.accepted = accepted
        self.acked = 0
        self.offset = 0
        self.epoch = ""
        self.pending: deque[Batch] = deque()
        self.listeners: dict[Listener, None] = {}
        self.strict_until = 0.0
        self.touched = 0.0


class Batch:
    """Consecutive events of one producer as they go to the bridge; ``payload`` is opaque here."""

    __slots__ = ("dropped", "first", "happened", "last", "payload", "producer", "received", "size", "span", "trace_id")

    def __init__(
        self, producer: ProducerState, first: int, last: int, size: int, payload: Any, received: float
    ) -> None:
        self.producer = producer
        self.first = first
        self.last = last
        self.size = size
        self.payload = payload
        self.received = received
        self.dropped = False
        # When its first event happened, as Unix time, and the trace that is kept of it; for statistics.
        self.happened = 0.0
        self.trace_id = ""
        # Its way from here into the log, where its events are of a kept trace.
        self.span: Span = NO_SPAN

    @property
    def count(self) -> int:
        """How many events."""
        return self.last - self.first + 1


class VerdictKind(enum.Enum):
    """What is to be done with an offered item."""

    QUEUE = "queue"
    IN_FLIGHT = "in_flight"  # a repeat of what is on its way: its acknowledgement will come
    KNOWN = "known"  # a repeat of what is in the log


class Offer(NamedTuple):
    """One item of a producer, its identity verified."""

    user_id: str
    producer_id: str
    run_id: str
    first: int
    last: int
    declares_gap: bool
    fence: int = 0


class Refused(NamedTuple):
    """What a refusal of the bridge asks for; without ``rewinds`` nothing of the producer is wanted now."""

    last_number: int
    rewinds: bool
    is_gap: bool
    fence: int = 0


class Verdict(NamedTuple):
    """``skip`` is how many of the item's first events are a repeat."""

    kind: VerdictKind
    producer: ProducerState
    skip: int = 0
