"""``AgentExecutionCore``: the instances there are, each one user's and one run's, under one bound.

An instance is a reserved worker; it is claimed by ``RunInstance``, or lapses. Running it is ``stage``'s work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from carrel.errors import CarrelError, UnknownInstanceError, WorkersBusyError
from carrel.ids import new_id
from servicekit.logs import get_logger
from services.agent_instance.domain.contract import AGENT_INSTANCE
from services.agent_instance.domain.executor import AgentExecutor
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import Caller, PoolStatistics

__all__ = ["AgentExecutionCore", "Instance"]

_log: Final = get_logger("agent_instance.core")


@dataclass(slots=True, eq=False)
class Instance:
    """One isolated agent instance: its owner, its class, its worker. ``end`` stops what runs on it, once it runs."""

    instance_id: str
    user_id: str
    run_id: str
    entry: AgentEntry
    executor: AgentExecutor
    warm: bool
    creation_s: float
    expires_at: float
    running: bool = False
    end: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Counts:
    killed: int = 0
    failed: int = 0
    fallbacks: int = 0


class AgentExecutionCore:
    """``AgentInstanceFactory`` and ``AgentExecutionCore`` of the documents: creates, claims and releases instances.

    Args:
        capacity: The most instances at once, reserved ones included (``max_workers``).
        user_capacity: The most of one user (``max_workers_per_user``).
        reserve_s: How long an instance that is not run is kept.
    """

    def __init__(
        self,
        registry: AgentClassRegistry,
        pool: ResourcePool,
        dependencies: DependencyChecker,
        *,
        capacity: int,
        user_capacity: int = 10,
        reserve_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self._pool = pool
        self._dependencies = dependencies
        self._capacity = capacity
        self._user_capacity = user_capacity
        self._reserve_s = reserve_s
        self._clock = clock
        self._instances: dict[str, Instance] = {}
        self._coming: list[str] = []  # users of instances whose worker is being had
        self.counts = _Counts()

    @property
    def active(self) -> int:
        """Instances there are, reserved or running."""
        return len(self._instances)

    async def create(self, caller: Caller, agent_name: str) -> Instance:
        """Check the agent's dependencies and reserve an instance of it for the caller's run.

        Raises:
            UnknownAgentError: No such agent.
            AgentDependencyError: Something it depends on is missing.
            WorkersBusyError: As many instances as allowed, in all or for the user.
            WorkerLostError: No worker can be started.
        """
        AGENT_INSTANCE.check_input(caller)
        with AGENT_INSTANCE.timed("create_instance"):
            instance = await self._reserve(caller, agent_name)
        AGENT_INSTANCE.check_output(instance)
        return instance

    async def _reserve(self, caller: Caller, agent_name: str) -> Instance:
        entry = self.registry.entry(agent_name)
        await self._dependencies.require(entry)
        self._require_room(caller.user_id)
        # Counted before the wait: two that come at once must not both see the last place free.
        self._coming.append(caller.user_id)
        try:
            part = await self._pool.acquire()
        finally:
            self._coming.remove(caller.user_id)
        instance = Instance(
            instance_id=new_id("inst"),
            user_id=caller.user_id,
            run_id=caller.run_id,
            entry=entry,
            executor=part.executor,
            warm=part.warm,
            creation_s=part.seconds,
            expires_at=self._clock() + self._reserve_s,
        )
        self._instances[instance.instance_id] = instance
        return instance

    def _require_room(self, user_id: str) -> None:
        users = [instance.user_id for instance in self._instances.values()] + self._coming
        if len(users) >= self._capacity:
            raise _busy(f"all {self._capacity} workers are busy", "max_workers", self._capacity, len(users))
        use = users.count(user_id)
        if use >= self._user_capacity:
            problem = f"all {self._user_capacity} workers that one user may have are busy"
            raise _busy(problem, "max_workers_per_user", self._user_capacity, use)

    async def claim(self, caller: Caller, instance_id: str, agent_name: str) -> Instance:
        """The reserved instance, from now on running; a new one when no id is given.

        Raises:
            UnknownInstanceError: It is not this run's, has lapsed, runs already, or is another agent's.
        """
        instance = self._own(caller, instance_id) if instance_id else await self.create(caller, agent_name)
        if instance is None or instance.running or instance.entry.name != agent_name:
            raise UnknownInstanceError(
                "the run has no such instance waiting for this agent",
                advice="create one, and start it within the time it is reserved for",
            )
        instance.running = True
        return instance

    async def prepare_fallback(self, instance: Instance, fallback: AgentEntry) -> None:
        """Put a new worker, for the fallback, in the place of the one that has served.

        Raises:
            AgentDependencyError: Something the fallback depends on is missing.
            WorkerLostError: No worker can be started.
        """
        await self._dependencies.require(fallback)
        used, instance.executor = instance.executor, (await self._pool.acquire()).executor
        await used.kill()

    async def release(self, caller: Caller, instance_id: str) -> bool:
        """End an instance, whatever it does; False when the run has none of that id."""
        instance = self._own(caller, instance_id)
        if instance is None:
            return False
        if instance.end is not None:
            await instance.end()
        await self.drop(instance)
        return True

    async def drop(self, instance: Instance) -> None:
        """Kill the instance's worker and forget it. Idempotent."""
        try:
            await instance.executor.kill()
        finally:
            self._instances.pop(instance.instance_id, None)

    async def expire_reservations(self) -> int:
        """Release every instance that was not run in time; returns how many."""
        now = self._clock()
        late = [i for i in self._instances.values() if not i.running and i.expires_at <= now]
        for instance in late:
            _log.info("reserved instance lapsed", run_id=instance.run_id, agent=instance.entry.name)
            await self.drop(instance)
        return len(late)

    async def housekeeping(self, interval_s: float = 1.0) -> None:
        """Keep the pool filled and expire reservations, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.keep_filled(_report_start), name="refill")
            while True:
                await asyncio.sleep(interval_s)
                await self.expire_reservations()

    async def aclose(self) -> None:
        """End every instance and every waiting worker."""
        for instance in list(self._instances.values()):
            if instance.end is not None:
                await instance.end()
            await self.drop(instance)
        await self._pool.aclose()

    def statistics(self, *, periodic_updates_active: int = 0) -> PoolStatistics:
        """The counts as they are now."""
        seconds = self._pool.creation_seconds()
        return PoolStatistics(
            created=self._pool.created,
            reused=self._pool.reused,
            reuse_rate=self._pool.reuse_rate,
            active=len(self._instances),
            idle=self._pool.idle,
            capacity=self._capacity,
            killed=self.counts.killed,
            failed=self.counts.failed,
            fallbacks=self.counts.fallbacks,
            periodic_updates_active=periodic_updates_active,
            creation_p50_s=seconds[len(seconds) // 2] if seconds else 0.0,
            creation_p95_s=seconds[min(len(seconds) - 1, len(seconds) * 95 // 100)] if seconds else 0.0,
        )

    def _own(self, caller: Caller, instance_id: str) -> Instance | None:
        instance = self._instances.get(instance_id)
        if instance is None or (instance.user_id, instance.run_id) != (caller.user_id, caller.run_id):
            return None
        return instance


def _busy(problem: str, limit: str, value: int, use: int) -> WorkersBusyError:
    return WorkersBusyError(
        problem,
        advice=f"try again shortly, or raise {limit}",
        retry_after_s=1.0,
        limit=limit,
        limit_value=value,
        use=use,
    )


def _report_start(error: CarrelError) -> None:
    _log.error("a worker cannot be started ahead of need", code=error.code, reason=error.message)
