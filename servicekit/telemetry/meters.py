"""``Meters``: where a service says how each of its metrics is read, and the one place from which all are.

What a service counts stays where it is counted; here are only the ways to read it. The Prometheus endpoint and the OTLP
push both take what ``collect`` gives, so no number has two sources. Nothing is read until somebody collects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from servicekit.logs import get_logger
from servicekit.telemetry.buckets import Buckets, BucketsRead
from servicekit.telemetry.catalogue import CATALOGUE, Kind, Metric

__all__ = ["NO_METERS", "Collected", "Family", "Labels", "Meters", "Reading"]

_log: Final = get_logger("servicekit.metrics")
# A label's value beyond these is not shown, whatever has gone wrong that there are so many.
_MAX_SAMPLES: Final = 500
_FRESH_S: Final = 0.5
_REFRESH_S: Final = 2.0
# How long the loop is held before others get their turn.
_TURN_S: Final = 0.002

_T = TypeVar("_T")
Labels: TypeAlias = tuple[str, ...]
Number: TypeAlias = int | float
# One number for a metric without labels; by the label's value, or the labels' values in order, for others.
Reading: TypeAlias = Number | Mapping[Any, Number]
HistogramReading: TypeAlias = Buckets | Mapping[Any, Buckets]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples at one moment: numbers, or the buckets of a histogram."""

    metric: Metric
    numbers: Mapping[Labels, float]
    histograms: Mapping[Labels, BucketsRead]


@dataclass(frozen=True, slots=True)
class Collected:
    """All families at one moment, and since when their counters count; Unix time in nanoseconds."""

    families: tuple[Family, ...]
    started_ns: int
    at_ns: int


class Meters:
    """The metrics of one process.

    Args:
        service: Its name, as in the catalogue.
    """

    def __init__(self, service: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.service = service
        self._clock = clock
        self._started_ns = time.time_ns()
        self._reads: dict[str, Callable[[], Reading]] = {}
        self._histograms: dict[str, Callable[[], HistogramReading]] = {}
        self._refreshes: dict[str, Callable[[], Awaitable[None]]] = {}
        self._collecting = asyncio.Lock()
        self._last: Collected | None = None
        self._last_at = 0.0
        self._told: set[str] = set()
        self.failures = 0

    @property
    def names(self) -> frozenset[str]:
        """The metrics that can be read."""
        return frozenset(self._reads) | frozenset(self._histograms)

    def read(self, name: str, read: Callable[[], Reading]) -> None:
        """A counter or gauge is read so, in the event loop: without waiting, and quickly.

        Raises:
            ValueError: The catalogue has no such counter or gauge of this service, or it is registered already.
        """
        if self._known(name).kind is Kind.HISTOGRAM:
            raise ValueError(f"{name} is a histogram")
        self._reads[name] = read

    def histogram(self, name: str, read: Callable[[], HistogramReading] | Buckets) -> None:
        """A histogram's buckets are these, or those that ``read`` gives.

        Raises:
            ValueError: The catalogue has no such histogram of this service, or it is registered already.
        """
        if self._known(name).kind is not Kind.HISTOGRAM:
            raise ValueError(f"{name} is no histogram")
        self._histograms[name] = (lambda: read) if isinstance(read, Buckets) else read

    def refresh(self, name: str, refresh: Callable[[], Awaitable[None]]) -> None:
        """Do this before each collection: for what cannot be read without waiting. It has two seconds."""
        self._refreshes[name] = refresh

    async def collect(self) -> Collected:
        """Every metric as it is now, or was half a second ago. One that cannot be read is left out and counted."""
        async with self._collecting:
            now = self._clock()
            if self._last is None or now - self._last_at > _FRESH_S:
                if self._refreshes:
                    await asyncio.gather(*(self._refreshed(*item) for item in self._refreshes.items()))
                self._last, self._last_at = await self._collect(), self._clock()
            return self._last

    async def _refreshed(self, name: str, refresh: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(_REFRESH_S):
                await refresh()
        except Exception as error:  # noqa: BLE001 -- the others' metrics must be read, whatever this one's source says
            self._failed(name, error)

    async def _collect(self) -> Collected:
        families: list[Family] = []
        held_since = time.perf_counter()
        for name, metric in CATALOGUE.items():
            if name not in self._reads and name not in self._histograms:
                continue
            try:
                families.append(self._family(metric))
            except Exception as error:  # noqa: BLE001 -- as above
                self._failed(name, error)
            if time.perf_counter() - held_since > _TURN_S:
                await asyncio.sleep(0)
                held_since = time.perf_counter()
        return Collected(tuple(families), self._started_ns, time.time_ns())

    def _family(self, metric: Metric) -> Family:
        if metric.kind is Kind.HISTOGRAM:
            found = self._histograms[metric.name]()
            buckets = {(): found} if isinstance(found, Buckets) else _bounded(metric, found)
            return Family(metric, {}, {labels: part.read() for labels, part in buckets.items()})
        reading = self._reads[metric.name]()
        numbers = _bounded(metric, reading) if isinstance(reading, Mapping) else {(): reading}
        return Family(metric, {labels: float(number) for labels, number in numbers.items()}, {})

    def _failed(self, name: str, error: BaseException) -> None:
        self.failures += 1
        if name not in self._told:
            self._told.add(name)
            _log.warning("a metric cannot be read", metric=name, error_type=type(error).__name__)

    def _known(self, name: str) -> Metric:
        metric = CATALOGUE.get(name)
        if metric is None:
            raise ValueError(f"{name} is not in the catalogue: add it to servicekit/telemetry/catalogue_entries.py")
        if self.service not in metric.services:
            raise ValueError(f"the catalogue has {name} for {', '.join(metric.services)}, not for {self.service}")
        if name in self._reads or name in self._histograms:
            raise ValueError(f"{name} is registered already")
        return metric


class _NoMeters(Meters):
    """What is registered here is not read: telemetry is off."""

    def read(self, name: str, read: Callable[[], Reading]) -> None:
        """See ``Meters``."""

    def histogram(self, name: str, read: Callable[[], HistogramReading] | Buckets) -> None:
        """See ``Meters``."""

    def refresh(self, name: str, refresh: Callable[[], Awaitable[None]]) -> None:
        """See ``Meters``."""


NO_METERS: Final[Meters] = _NoMeters("")


def _bounded(metric: Metric, found: Mapping[Any, _T]) -> dict[Labels, _T]:
    result: dict[Labels, _T] = {}
    for key, value in found.items():
        labels = (key,) if isinstance(key, str) else tuple(key)
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}")
        result[labels] = value
        if len(result) >= _MAX_SAMPLES:
            break
    return result
