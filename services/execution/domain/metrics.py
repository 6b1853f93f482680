"""Counts of the engine factory since the start of this process, under the design documents' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from servicekit.telemetry.buckets import LAYER_MS, LONG_S, Buckets
from services.execution.domain.timing import Part
from services.execution.models import RunState

__all__ = ["LAYERS", "FactoryMetrics", "MetricsSnapshot", "Reservoir"]

LAYERS = ("execution_engine", "agent_instance", "websocket_emitter", "bridge_integration")


class Reservoir:
    """The average of all values and the 95th percentile of the last ``size`` ones: bounded, and recent."""

    def __init__(self, size: int = 1000, bounds: Sequence[float] = LONG_S) -> None:
        self._values: list[float] = []
        self._size = size
        self._next = 0
        self.buckets = Buckets(bounds)

    def add(self, value: float, trace_id: str = "") -> None:
        """Take a value, and the id of the trace that is kept of it."""
        self.buckets.add(value, 1, trace_id)
        if len(self._values) < self._size:
            self._values.append(value)
        else:
            self._values[self._next] = value
            self._next = (self._next + 1) % self._size

    @property
    def average(self) -> float:
        """Of everything since the start; 0 when there is nothing."""
        count = self.buckets.count
        return self.buckets.sum / count if count else 0.0

    def percentile(self, share: float) -> float:
        """The value below which ``share`` of the recent ones lie; 0 when there is nothing."""
        if not self._values:
            return 0.0
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """``FactoryMetrics`` at one moment. Times in seconds, the chain's layers in milliseconds."""

    engines_created: int
    engines_active: int
    engines_cleaned: int
    total_users: int
    concurrent_peak: int
    contexts_created: int
    contexts_cleaned: int
    runs_total: int
    runs_successful: int
    runs_failed: int
    execution_time_average: float
    execution_time_p95: float
    factory_chain_metrics: Mapping[str, float]
    timeouts: int
    refusals: Mapping[str, int]
    runs_queued: int
    runs_waiting: int
    runs_resumed: int
    attempts_lost: int
    run_parts: Mapping[Part, float]
    runs_timed: int


@dataclass
class FactoryMetrics:
    """The counters; ``active``, ``users`` and what waits now are the factory's to give, the rest is counted here."""

    engines_created: int = 0
    engines_cleaned: int = 0
    concurrent_peak: int = 0
    contexts_created: int = 0
    contexts_cleaned: int = 0
    runs_total: int = 0
    runs_successful: int = 0
    runs_failed: int = 0
    timeouts: int = 0
    cancellations: int = 0
    runs_queued: int = 0
    runs_waiting: int = 0
    runs_resumed: int = 0
    attempts_lost: int = 0
    runs_timed: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    execution_time: Reservoir = field(default_factory=Reservoir)
    layers: Mapping[str, Reservoir] = field(
        default_factory=lambda: {layer: Reservoir(bounds=LAYER_MS) for layer in LAYERS}
    )
    parts: dict[Part, Buckets] = field(default_factory=dict)

    def layer(self, name: str, milliseconds: float) -> None:
        """A layer of the chain was made for a run."""
        self.layers[name].add(milliseconds)

    def engine_made(self, active: int) -> None:
        """An engine was made; so many are active now."""
        self.engines_created += 1
        self.concurrent_peak = max(self.concurrent_peak, active)

    def run_admitted(self) -> None:
        """A run was admitted, and its context accepted with it."""
        self.runs_total += 1
        self.contexts_created += 1

    def run_decided(self, outcome: RunState, seconds: float, trace_id: str = "") -> None:
        """A run's outcome was decided; ``trace_id`` names the trace that is kept of it."""
        self.contexts_cleaned += 1
        self.execution_time.add(seconds, trace_id)
        if outcome is RunState.SUCCEEDED:
            self.runs_successful += 1
        else:
            self.runs_failed += 1
        if outcome is RunState.TIMED_OUT:
            self.timeouts += 1
        if outcome is RunState.CANCELLED:
            self.cancellations += 1

    def run_ended(self, parts: Mapping[Part, float]) -> None:
        """A run has come to its end here, and its time went so."""
        self.runs_timed += 1
        for part, seconds in parts.items():
            if part not in self.parts:
                self.parts[part] = Buckets(LONG_S)
            self.parts[part].add(seconds)

    def snapshot(self, active: int, users: int) -> MetricsSnapshot:
        """Everything at this moment."""
        return MetricsSnapshot(
            engines_created=self.engines_created,
            engines_active=active,
            engines_cleaned=self.engines_cleaned,
            total_users=users,
            concurrent_peak=self.concurrent_peak,
            contexts_created=self.contexts_created,
            contexts_cleaned=self.contexts_cleaned,
            runs_total=self.runs_total,
            runs_successful=self.runs_successful,
            runs_failed=self.runs_failed,
            execution_time_average=self.execution_time.average,
            execution_time_p95=self.execution_time.percentile(0.95),
            factory_chain_metrics={name: reservoir.average for name, reservoir in self.layers.items()},
            timeouts=self.timeouts,
            refusals=dict(self.refusals),
            runs_queued=self.runs_queued,
            runs_waiting=self.runs_waiting,
            runs_resumed=self.runs_resumed,
            attempts_lost=self.attempts_lost,
            run_parts={part: buckets.sum for part, buckets in self.parts.items()},
            runs_timed=self.runs_timed,
        )
