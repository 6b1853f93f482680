"""What the gateway counts of its connections, for operators: totals kept by hand, and a frozen picture of the moment.

Bounded whatever the number of users: no name, id or address is in it. Not the metrics endpoint, which can read this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol

from gateway.ring import Place
from servicekit.telemetry.buckets import Buckets

__all__ = ["GatewayStatistics", "Lane", "Tally"]


_NO_TOTALS: Final = frozenset({"ended", "latency_s"})


class Lane(Protocol):
    """One connection's sending side at this moment."""

    @property
    def lag(self) -> int:
        """Entries of the log that have not been sent."""

    @property
    def unacknowledged(self) -> int:
        """Events in the send window."""

    @property
    def stalled(self) -> bool:
        """Whether the transport takes no more at the moment."""

    @property
    def window_full(self) -> bool:
        """Whether acknowledgements are waited for."""

    @property
    def place(self) -> Place:
        """Where it is."""


@dataclass(slots=True)
class Tally:
    """Totals since the start. Whoever does a thing adds one."""

    accepted: int = 0
    events_sent: int = 0
    batches_sent: int = 0
    batches_compressed: int = 0
    bytes_sent: int = 0
    bytes_saved: int = 0
    ring_reads: int = 0
    log_reads: int = 0
    log_read_failures: int = 0
    log_entries_read: int = 0
    resets: int = 0
    gaps: int = 0
    acks: int = 0
    silent: int = 0
    heartbeats: int = 0
    # By the name of the close code, "lost" for those that the peer or the network ended, "complete" for streams of runs
    # that have been read to their end: a fixed set of names.
    ended: Counter[str] = field(default_factory=Counter)
    # Seconds from an event's happening to its writing to a connection that was up to date.
    latency_s: Buckets = field(default_factory=Buckets)


@dataclass(frozen=True, slots=True)
class GatewayStatistics:
    """The totals, and what is open now.

    Args:
        connections: Sockets that are open, those shaking hands too.
        users: Users with a connection.
        window_events: Events sent and not acknowledged, of all connections that acknowledge.
        window_full: Connections whose window is full.
        stalled: Connections whose transport takes no more.
        lag_events: Entries that are in the log and not sent yet, of all connections.
        lag_max_events: The most that one connection is behind.
        ring_bytes: Bytes of events in the rings.
        totals: The totals of ``Tally`` by their names.
        ended: How many connections ended, by reason.
    """

    connections: int
    users: int
    window_events: int
    window_full: int
    stalled: int
    lag_events: int
    lag_max_events: int
    ring_bytes: int
    totals: Mapping[str, int]
    ended: Mapping[str, int]

    @classmethod
    def of(
        cls, tally: Tally, lanes: Iterable[Lane], *, connections: int, users: int, ring_bytes: int
    ) -> GatewayStatistics:
        """The picture of this moment."""
        window = full = stalled = behind = most = 0
        for lane in lanes:
            window += lane.unacknowledged
            full += lane.window_full
            stalled += lane.stalled
            lag = lane.lag
            behind += lag
            most = max(most, lag)
        totals = {f.name: getattr(tally, f.name) for f in fields(tally) if f.name not in _NO_TOTALS}
        return cls(connections, users, window, full, stalled, behind, most, ring_bytes, totals, dict(tally.ended))

    def to_json(self) -> dict[str, Any]:
        """As operators read it."""
        return {name: getattr(self, name) for name in self.__slots__}
