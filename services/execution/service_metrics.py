"""How execution's metrics are read: from the factory's counts, the clocks of runs, and the store's own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from servicekit.telemetry.meters import Meters
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.revocations import RevokedUsers
from services.execution.domain.services import RunServices
from services.execution.models import UNENDED_STATES, RunState
from services.execution.models_steps import Unended
from services.execution.store import RunStore
from services.execution.store_sql_damage import left_alone
from services.execution.store_sql_measured import StoreTimes

__all__ = ["Backlog", "observe_execution"]

_ASK_S: Final = 5.0


class Backlog:
    """What the store says of unended runs, asked for at most every five seconds, and only by who reads metrics."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._asked = self._told = -_ASK_S
        self.found: Mapping[RunState, Unended] = {state: Unended(0, 0.0) for state in UNENDED_STATES}

    async def refresh(self) -> None:
        """Ask again, if it is time."""
        now = time.monotonic()
        if now - self._asked >= _ASK_S:
            self._asked = now
            self.found = await self._store.backlog()
            self._told = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the store has last told."""
        return time.monotonic() - self._told


def observe_execution(
    meters: Meters, factory: ExecutionEngineFactory, services: RunServices, times: StoreTimes, revoked: RevokedUsers
) -> None:
    """Register them all."""
    metrics, read = services.metrics, meters.read
    read("carrel_engines_created_total", lambda: metrics.engines_created)
    read("carrel_engines_active", lambda: factory.engines)
    read("carrel_engines_cleaned_total", lambda: metrics.engines_cleaned)
    read("carrel_total_users", lambda: factory.users)
    read("carrel_concurrent_peak", lambda: metrics.concurrent_peak)
    read("carrel_contexts_created_total", lambda: metrics.contexts_created)
    read("carrel_contexts_cleaned_total", lambda: metrics.contexts_cleaned)
    read("carrel_runs_total", lambda: metrics.runs_total)
    read("carrel_runs_successful_total", lambda: metrics.runs_successful)
    read("carrel_runs_failed_total", lambda: metrics.runs_failed)
    read("carrel_run_timeouts_total", lambda: metrics.timeouts)
    read("carrel_run_cancellations_total", lambda: metrics.cancellations)
    read("carrel_run_refusals_total", lambda: metrics.refusals)
    read("carrel_runs_queued", lambda: factory.holdings.count(RunState.QUEUED))
    read("carrel_runs_waiting", lambda: factory.holdings.count(RunState.WAITING))
    read("carrel_runs_resumed_total", lambda: metrics.runs_resumed)
    read("carrel_attempts_lost_total", lambda: metrics.attempts_lost)
    meters.histogram("carrel_execution_time_seconds", metrics.execution_time.buckets)
    meters.histogram(
        "carrel_factory_chain_metrics_milliseconds",
        lambda: {layer: reservoir.buckets for layer, reservoir in metrics.layers.items()},
    )
    meters.histogram("carrel_run_part_seconds", lambda: {part.value: b for part, b in metrics.parts.items()})
    meters.histogram("carrel_run_store_seconds", lambda: times.seconds)
    read("carrel_run_store_errors_total", lambda: times.errors)
    read("carrel_runs_unreadable", left_alone)
    read("carrel_revoked_users", lambda: len(revoked.known))
    read("carrel_revocations_age_seconds", lambda: revoked.age_s)
    backlog = Backlog(services.store)
    meters.refresh("unended runs", backlog.refresh)
    read("carrel_unended_runs", lambda: {state.value: of.runs for state, of in backlog.found.items()})
    read("carrel_oldest_run_age_seconds", lambda: {state.value: of.oldest_s for state, of in backlog.found.items()})
    read("carrel_backlog_age_seconds", lambda: backlog.age_s)
