"""A histogram as plain numbers: what a hot path adds to and a scrape reads. No lock: one event loop owns it.

Not a metric: which one it belongs to is said where it is registered (``meters``).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from servicekit.telemetry.tracing import as_traceparent, is_sampled

__all__ = ["LATENCY_S", "LAYER_MS", "LONG_S", "Buckets", "BucketsRead", "Exemplar", "sampled_trace"]

# Upper bounds, each included, as Prometheus has them.
LATENCY_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
LAYER_MS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0)


class Exemplar(NamedTuple):
    """One measured value and the trace in which it was measured; ``at`` is Unix time in seconds."""

    value: float
    trace_id: str
    at: float


@dataclass(frozen=True, slots=True)
class BucketsRead:
    """What was in the buckets at one moment; ``counts`` has one more than ``bounds``, for what is above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar | None, ...]

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.counts)


class Buckets:
    """Counts of values by size, their sum, and for each size the latest value that a sampled trace has seen.

    Args:
        bounds: Upper bounds, rising.
    """

    __slots__ = ("_counts", "_exemplars", "_wall", "bounds", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_S, *, wall: Callable[[], float] = time.time) -> None:
        if list(bounds) != sorted(set(bounds)) or not bounds:
            raise ValueError("the bounds of a histogram rise, and there is one at least")
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._exemplars: dict[int, Exemplar] = {}
        self._wall = wall
        self.sum = 0.0

    def add(self, value: float, count: int = 1, trace_id: str = "") -> None:
        """Take ``count`` values of this size; a negative one (two clocks that differ) counts as 0."""
        value = max(value, 0.0)
        index = bisect_left(self.bounds, value)
        self._counts[index] += count
        self.sum += value * count
        if trace_id:
            self._exemplars[index] = Exemplar(value, trace_id, self._wall())

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self._counts)

    def read(self) -> BucketsRead:
        """A copy, for whoever reads at leisure."""
        found = self._exemplars.get
        exemplars = tuple(found(index) for index in range(len(self._counts)))
        return BucketsRead(self.bounds, tuple(self._counts), self.sum, exemplars)


def sampled_trace(traceparent: str) -> str:
    """The trace id of a W3C ``traceparent`` whose trace is kept; empty for any other text.

    It comes with events, from whoever sends them, and goes into what scrapers read: nothing else may get there.
    """
    if not is_sampled(traceparent) or not as_traceparent(traceparent):
        return ""
    return traceparent[3:35]
