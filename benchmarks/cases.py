"""The table of cases: name to coroutine function that measures and returns metric names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from benchmarks.active_case import active_users
from benchmarks.cancel_case import cancel
from benchmarks.connections_case import connections
from benchmarks.context_case import context
from benchmarks.contracts_case import contracts
from benchmarks.costs_case import costs
from benchmarks.events_case import events
from benchmarks.fairness_case import fairness
from benchmarks.first_event_case import first_event
from benchmarks.process_cases import memory, startup
from benchmarks.reconnect_case import reconnect_storm
from benchmarks.recovery_case import recovery
from benchmarks.redis_case import redis_events
from benchmarks.replicas_case import replicas
from benchmarks.runs_case import runs
from benchmarks.sanitizer_case import sanitizer
from benchmarks.stalled_case import stalled_readers
from benchmarks.telemetry_case import telemetry_overhead
from benchmarks.worker_cases import memory_per_run, worker_start

__all__ = ["CASES"]

CASES: Final[Mapping[str, Callable[[], Coroutine[Any, Any, dict[str, float]]]]] = {
    "context": context,
    "sanitizer": sanitizer,
    "startup": startup,
    "first_event": first_event,
    "events": events,
    "redis_events": redis_events,
    "replicas": replicas,
    "memory": memory,
    "worker_start": worker_start,
    "memory_per_run": memory_per_run,
    "runs": runs,
    "cancel": cancel,
    "recovery": recovery,
    "fairness": fairness,
    "connections": connections,
    "reconnect_storm": reconnect_storm,
    "active_users": active_users,
    "stalled_readers": stalled_readers,
    "costs": costs,
    "contracts": contracts,
    "telemetry_overhead": telemetry_overhead,
}
