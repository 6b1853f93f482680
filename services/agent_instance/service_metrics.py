"""How agent_instance's metrics are read: from the pool, the core, and what tool and model calls have counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from servicekit.telemetry.meters import Meters
from services.agent_instance.domain.model_calls import ModelDesk
from services.agent_instance.domain.stage import StageServices
from services.agent_instance.domain.statistics import ModelStatistics

__all__ = ["WorkerMemory", "observe_agent_instance"]

WorkerMemory = Callable[[], Awaitable[Sequence[int]]]


def observe_agent_instance(meters: Meters, services: StageServices, memory: WorkerMemory | None) -> None:
    """Register them all.

    Args:
        memory: Gives the bytes of each serving worker; None where no agent has a process of its own.
    """
    core, pool, read = services.core, services.core.pool, meters.read
    read("carrel_pool_created_total", lambda: pool.created)
    read("carrel_pool_served_total", lambda: pool.served)
    read("carrel_pool_reused_total", lambda: pool.reused)
    read("carrel_pool_warm", lambda: pool.idle)
    read("carrel_pool_busy", lambda: core.active)
    read("carrel_pool_capacity", lambda: core.load().capacity)
    read("carrel_pool_waiting", lambda: core.waiting)
    read("carrel_pool_children", lambda: core.children_active)
    meters.histogram("carrel_worker_creation_seconds", pool.creation_s)
    read("carrel_workers_killed_total", lambda: core.counts.killed)
    read("carrel_workers_lost_total", lambda: core.counts.lost)
    read("carrel_agents_failed_total", lambda: core.counts.failed)
    read("carrel_fallbacks_total", lambda: core.counts.fallbacks)
    read("carrel_periodic_updates", lambda: services.periodic.active)
    _observe_memory(meters, memory)
    tools = services.dispatchers.statistics
    read("carrel_tool_calls_total", lambda: tools.ended)
    meters.histogram("carrel_tool_call_seconds", tools.seconds)
    models = services.models.statistics if isinstance(services.models, ModelDesk) else ModelStatistics()
    read("carrel_model_calls_total", lambda: models.ended)
    read("carrel_model_tokens_total", lambda: models.tokens)
    meters.histogram("carrel_model_call_seconds", models.seconds)


def _observe_memory(meters: Meters, memory: WorkerMemory | None) -> None:
    found: Sequence[int] = ()

    async def look() -> None:
        nonlocal found
        if memory is not None:
            found = await memory()

    meters.refresh("memory of workers", look)
    meters.read("carrel_workers_memory_bytes", lambda: sum(found))
    meters.read("carrel_worker_memory_max_bytes", lambda: max(found, default=0))
