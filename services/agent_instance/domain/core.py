"""``AgentExecutionCore``: the instances there are, each one user's and one run's, under one bound.

An instance is a reserved worker; it is claimed by ``RunInstance``, or lapses. Running it is ``stage``'s work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from carrel.agents import Isolation
from carrel.errors import CarrelError, UnknownInstanceError, WorkersBusyError
from carrel.ids import new_id
from servicekit.logs import get_logger
from services.agent_instance.domain.contract import AGENT_INSTANCE
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory
from services.agent_instance.domain.pool import Part, ResourcePool
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.domain.slots import FairSlots
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import Caller, Load, PoolStatistics

__all__ = ["AgentExecutionCore", "CoreLimits", "Instance"]

_log: Final = get_logger("agent_instance.core")


@dataclass(slots=True, eq=False)
class Instance:
    """One isolated agent instance: its owner, its class, its worker. ``end`` stops what runs on it, once it runs.

    ``parent`` is set on a sub-agent's: the instance whose agent asked for it.
    """

    instance_id: str
    user_id: str
    run_id: str
    entry: AgentEntry
    executor: AgentExecutor
    warm: bool
    creation_s: float
    expires_at: float
    running: bool = False
    parent: Instance | None = field(default=None, repr=False)
    end: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Counts:
    """What stages count. ``lost``: workers that died unasked, or used more than they may."""

    killed: int = 0
    failed: int = 0
    fallbacks: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """How many instances there may be, and who may wait for one.

    Args:
        capacity: The most at once, reserved ones included (``max_workers``).
        user_capacity: The most of one user (``max_workers_per_user``).
        children: The most sub-agents at once, beside those (``max_child_workers``).
        waiting: The most that wait, in all; ``waiting_per_user`` of one user.
        wait_s: How long one waits.
        reserve_s: How long an instance that is not run is kept.
    """

    capacity: int = 50
    user_capacity: int = 10
    children: int = 50
    waiting: int = 1000
    waiting_per_user: int = 100
    wait_s: float = 60.0
    reserve_s: float = 30.0


class AgentExecutionCore:
    """``AgentInstanceFactory`` and ``AgentExecutionCore`` of the documents: creates, claims and releases instances.

    Args:
        pool: Where workers come from.
        limits: How many, and how long.
        in_loop: Makes the worker of a class with ``isolation = "task"``, on the spot; None to take the pool's for it.
        isolation: What the pool's workers are.
    """

    def __init__(
        self,
        registry: AgentClassRegistry,
        pool: ResourcePool,
        dependencies: DependencyChecker,
        limits: CoreLimits | None = None,
        *,
        in_loop: ExecutorFactory | None = None,
        isolation: Isolation = "task",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.contract = AGENT_INSTANCE
        self._pool = pool
        self._dependencies = dependencies
        self._limits = limits = limits or CoreLimits()
        self._in_loop = in_loop
        self._isolation: Isolation = isolation
        self._clock = clock
        self._instances: dict[str, Instance] = {}
        self._children: dict[str, Instance] = {}
        self._slots = FairSlots(
            capacity=limits.capacity,
            user_capacity=limits.user_capacity,
            max_waiting=limits.waiting,
            max_waiting_per_user=limits.waiting_per_user,
            wait_s=limits.wait_s,
        )
        self._coming_children = 0
        self.counts = _Counts()

    @property
    def pool(self) -> ResourcePool:
        """Where workers come from."""
        return self._pool

    @property
    def active(self) -> int:
        """Instances there are, reserved or running; sub-agents not counted."""
        return len(self._instances)

    @property
    def waiting(self) -> int:
        """Claims that wait for a worker."""
        return self._slots.waiting

    @property
    def children_active(self) -> int:
        """Instances of sub-agents there are."""
        return len(self._children)

    def isolation(self, entry: AgentEntry) -> Isolation:
        """What is in effect for a class."""
        return "task" if entry.isolation == "task" and self._in_loop is not None else self._isolation

    async def create(self, caller: Caller, agent_name: str) -> Instance:
        """Check the agent's dependencies and reserve an instance of it for the caller's run.

        Raises:
            UnknownAgentError: No such agent.
            AgentDependencyError: Something it depends on is missing.
            WorkersBusyError: As many instances as allowed, in all or for the user.
            WorkerLostError: No worker can be started.
        """
        return await self._create(caller, agent_name, wait=False)

    async def claim(self, caller: Caller, instance_id: str, agent_name: str) -> Instance:
        """The reserved instance, from now on running; a new one when no id is given.

        For a new one it waits its turn: users take turns, each user's own in order. It may be cancelled meanwhile.

        Raises:
            UnknownInstanceError: It is not this run's, has lapsed, runs already, or is another agent's.
            UnknownAgentError: No such agent.
            AgentDependencyError: Something it depends on is missing.
            WorkersBusyError: Too many wait already, in all or of the user, or no worker came free in time.
            WorkerLostError: No worker can be started.
        """
        instance = self._own(caller, instance_id) if instance_id else await self._create(caller, agent_name, wait=True)
        if instance is None or instance.running or instance.entry.name != agent_name:
            raise UnknownInstanceError(
                "the run has no such instance waiting for this agent",
                advice="create one, and start it within the time it is reserved for",
            )
        instance.running = True
        return instance

    async def child(self, parent: Instance, agent_name: str) -> Instance:
        """A running instance for a sub-agent of ``parent``'s agent, under a bound of its own. It never waits: who holds
        a worker and waits for another one could wait for itself. End it with ``drop``.

        Raises:
            UnknownAgentError: No such agent.
            AgentDependencyError: Something it depends on is missing.
            WorkersBusyError: As many sub-agents as allowed.
            WorkerLostError: No worker can be started.
        """
        entry = self.registry.entry(agent_name)
        await self._dependencies.require(entry)
        use = len(self._children) + self._coming_children
        if use >= self._limits.children:
            raise WorkersBusyError(
                f"all {self._limits.children} workers for sub-agents are busy",
                advice="try again shortly, or raise max_child_workers",
                retry_after_s=1.0,
                limit="max_child_workers",
                limit_value=self._limits.children,
                use=use,
            )
        self._coming_children += 1
        try:
            instance = self._instance(parent.user_id, parent.run_id, entry, await self._part(entry))
        finally:
            self._coming_children -= 1
        instance.parent, instance.running = parent, True
        self._children[instance.instance_id] = instance
        return instance

    async def _create(self, caller: Caller, agent_name: str, *, wait: bool) -> Instance:
        AGENT_INSTANCE.check_input(caller)
        with AGENT_INSTANCE.timed("create_instance"):
            instance = await self._reserve(caller, agent_name, wait)
        AGENT_INSTANCE.check_output(instance)
        return instance

    async def _reserve(self, caller: Caller, agent_name: str, wait: bool) -> Instance:
        entry = self.registry.entry(agent_name)
        await self._dependencies.require(entry)
        if wait:
            await self._slots.wait(caller.user_id)
        else:
            self._slots.take(caller.user_id)
        try:
            instance = self._instance(caller.user_id, caller.run_id, entry, await self._part(entry))
        except BaseException:
            self._slots.give(caller.user_id)
            raise
        self._instances[instance.instance_id] = instance
        return instance

    async def _part(self, entry: AgentEntry) -> Part:
        if self._in_loop is None or entry.isolation != "task":
            return await self._pool.acquire()
        executor = self._in_loop()
        await executor.start()
        return Part(executor, warm=False, seconds=0.0)

    def _instance(self, user_id: str, run_id: str, entry: AgentEntry, part: Part) -> Instance:
        return Instance(
            instance_id=new_id("inst"),
            user_id=user_id,
            run_id=run_id,
            entry=entry,
            executor=part.executor,
            warm=part.warm,
            creation_s=part.seconds,
            expires_at=self._clock() + self._limits.reserve_s,
        )

    async def prepare_fallback(self, instance: Instance, fallback: AgentEntry) -> None:
        """Put a new worker, for the fallback, in the place of the one that has served.

        Raises:
            AgentDependencyError: Something the fallback depends on is missing.
            WorkerLostError: No worker can be started.
        """
        await self._dependencies.require(fallback)
        used, instance.executor = instance.executor, (await self._part(fallback)).executor
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
        """Kill the instance's worker and forget it, a sub-agent's too. Idempotent."""
        try:
            await instance.executor.kill()
        finally:
            self._children.pop(instance.instance_id, None)
            if self._instances.pop(instance.instance_id, None) is not None:
                self._slots.give(instance.user_id)

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
        for instance in [*self._children.values(), *self._instances.values()]:
            if instance.end is not None:
                await instance.end()
            await self.drop(instance)
        await self._pool.aclose()

    def load(self) -> Load:
        """How much room there is."""
        return Load(len(self._instances), self._slots.waiting, self._limits.capacity)

    def statistics(self, *, periodic_updates_active: int = 0) -> PoolStatistics:
        """The counts as they are now."""
        seconds = self._pool.creation_seconds()
        return PoolStatistics(
            created=self._pool.created,
            reused=self._pool.reused,
            reuse_rate=self._pool.reuse_rate,
            active=len(self._instances),
            idle=self._pool.idle,
            capacity=self._limits.capacity,
            killed=self.counts.killed,
            failed=self.counts.failed,
            fallbacks=self.counts.fallbacks,
            periodic_updates_active=periodic_updates_active,
            creation_p50_s=seconds[len(seconds) // 2] if seconds else 0.0,
            creation_p95_s=seconds[min(len(seconds) - 1, len(seconds) * 95 // 100)] if seconds else 0.0,
            waiting=self._slots.waiting,
            lost=self.counts.lost,
            children_active=len(self._children),
        )

    def _own(self, caller: Caller, instance_id: str) -> Instance | None:
        instance = self._instances.get(instance_id)
        if instance is None or (instance.user_id, instance.run_id) != (caller.user_id, caller.run_id):
            return None
        return instance


def _report_start(error: CarrelError) -> None:
    _log.error("a worker cannot be started ahead of need", code=error.code, reason=error.message)
