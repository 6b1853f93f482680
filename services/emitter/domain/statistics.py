"""Counts of this process, and how long the log takes. Plain numbers; exporting them is telemetry's work."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from servicekit.telemetry.buckets import Buckets
from services.emitter.models import Batch

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """Counts since the start; ``refused`` by RefusalReason name. Delivery times are of the last batches."""

    events_sent: int = 0
    events_rejected: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    delivery_late: int = 0
    # From receipt to acknowledgement, and from the moment that events happened to the same, in seconds.
    delivery_s: Buckets = field(default_factory=Buckets)
    latency_s: Buckets = field(default_factory=Buckets)
    _delays: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def delivered(self, batches: list[Batch], now: float, unix: float = 0.0) -> None:
        """These batches are in the log; ``unix`` is now on the wall's clock, as producers have it."""
        for batch in batches:
            count, delay = batch.count, now - batch.received
            self.events_sent += count
            self._delays.append(delay)
            self.delivery_s.add(delay, count, batch.trace_id)
            if batch.happened:
                self.latency_s.add(unix - batch.happened, count, batch.trace_id)

    def delay(self, quantile: float) -> float:
        """Seconds from receipt to acknowledgement at a quantile in 0…1; 0.0 before the first."""
        ordered = sorted(self._delays)
        return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] if ordered else 0.0
