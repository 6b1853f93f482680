"""Counts of this process, and how long the log takes. Plain numbers; exporting them is telemetry's work."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from services.emitter.models import Batch

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """Counts since the start; ``refused`` by RefusalReason name. Delivery times are of the last batches."""

    events_sent: int = 0
    events_rejected: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    delivery_late: int = 0
    _delays: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def delivered(self, batches: list[Batch], now: float) -> None:
        """These batches are in the log."""
        for batch in batches:
            self.events_sent += batch.count
            self._delays.append(now - batch.received)

    def delay(self, quantile: float) -> float:
        """Seconds from receipt to acknowledgement at a quantile in 0…1; 0.0 before the first."""
        ordered = sorted(self._delays)
        return ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] if ordered else 0.0
