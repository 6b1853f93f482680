"""What all runs of this process share, handed down as one thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from servicekit.tasks import TaskOwner
from servicekit.telemetry.buckets import sampled_trace
from servicekit.telemetry.tracing import NO_TRACING, Tracing
from services.execution.domain.admission import UserLimits
from services.execution.domain.catalogue import AgentCatalogue
from services.execution.domain.limits import MemoryLimits, ModelLimits, RateLimits
from services.execution.domain.metrics import FactoryMetrics
from services.execution.domain.ports import AgentHost, EventSink, NoWakeups, Wakeups
from services.execution.domain.timing import RunClock, RunTimings
from services.execution.domain.uploads import ArtifactLimits
from services.execution.domain.watch import Changes
from services.execution.models import Micros, RunRecord, RunState
from services.execution.store import ArtifactFolder, RunStore

__all__ = ["RunOptions", "RunServices"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Bounds and times of runs; the settings say what each means."""

    limits: UserLimits = field(default_factory=UserLimits)
    rates: RateLimits = field(default_factory=RateLimits)
    models: ModelLimits = field(default_factory=ModelLimits)
    max_active_total: int = 500
    max_unended_total: int = 10_000
    default_agent: str = "supervisor"
    max_attempts: int = 3
    silence_s: float = 15.0
    cancel_grace_s: float = 0.5
    input_timeout_s: float = 86_400.0
    keeper_s: float = 5.0
    queue_poll_s: float = 0.25
    decided_poll_s: float = 0.05
    # While other processes tell by themselves.
    decided_told_s: float = 1.0
    ticket_refresh_s: float = 300.0
    retry_first_s: float = 0.1
    retry_max_s: float = 5.0
    busy_max_s: float = 0.5
    history_messages: int = 50
    history_bytes: int = 65_536
    artifacts: ArtifactLimits = field(default_factory=ArtifactLimits)
    memories: MemoryLimits = field(default_factory=MemoryLimits)
    # 0 for ever.
    audit_retention_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RunServices:
    """The object graph below the factory."""

    store: RunStore
    folder: ArtifactFolder
    host: AgentHost
    sink: EventSink
    catalogue: AgentCatalogue
    tasks: TaskOwner
    metrics: FactoryMetrics
    changes: Changes
    clock: Callable[[], Micros]
    options: RunOptions = field(default_factory=RunOptions)
    wakeups: Wakeups = field(default_factory=NoWakeups)
    timings: RunTimings = field(default_factory=RunTimings)
    tracing: Tracing = NO_TRACING
    # Runs outlive the call that began them, so their tasks must not inherit its deadline and caller.
    home: Context = field(default_factory=copy_context)

    def decided(self, run: RunRecord, outcome: RunState, ended_at: Micros) -> None:
        """Count a run whose outcome is decided."""
        seconds = (ended_at - run.created_at) / 1_000_000
        self.metrics.run_decided(outcome, seconds, sampled_trace(run.identity.traceparent))

    def timing(self, run: RunRecord) -> RunClock:
        """Where the run's time goes."""
        identity = run.identity
        known = self.timings.known(identity.user, identity.run_id)
        return known or self.timings.of(
            identity.user, identity.run_id, max(0.0, (self.clock() - run.created_at) / 1_000_000)
        )

    def start(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run ``work`` as an owned task, outside of the call being served."""
        return self.home.run(self.tasks.start, work, name)
