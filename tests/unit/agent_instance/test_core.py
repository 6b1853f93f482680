"""Instances: reserved, claimed, lapsed, released; the pool behind them and its counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import (
    AgentDependencyError,
    UnknownAgentError,
    UnknownInstanceError,
    WorkerLostError,
    WorkersBusyError,
)
from services.agent_instance.domain.core import AgentExecutionCore, CoreLimits
from services.agent_instance.domain.executor import AgentExecutor
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import Caller
from services.agent_instance.workers.in_loop import InLoopExecutor
from tests.conftest import Eventually
from tests.unit.agent_instance.support import root_context


class Plain(Agent):
    name = "plain"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {}


class Needy(Plain):
    name = "needy"
    dependencies = ("llm", "database", "tools")


@tool
async def something() -> None: ...


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def present(_entry: AgentEntry) -> str:
    return ""


async def absent(_entry: AgentEntry) -> str:
    return "there is none"


async def mute(_entry: AgentEntry) -> str:
    await asyncio.sleep(10)
    return ""


def make(
    *, capacity: int = 3, warm: int = 0, checks: dict[str, Any] | None = None, clock: Clock | None = None
) -> tuple[AgentExecutionCore, ResourcePool]:
    pool = ResourcePool(InLoopExecutor, warm=warm)
    checker = DependencyChecker(checks or {}, timeout_s=0.05)
    registry = AgentClassRegistry.of(Plain, Needy)
    return AgentExecutionCore(registry, pool, checker, CoreLimits(capacity=capacity), clock=clock or Clock()), pool


def caller(user: str = "alice") -> Caller:
    return Caller(root_context(user), frozenset())


async def test_a_missing_dependency_is_named_with_what_to_do() -> None:
    core, _ = make(checks={"tools": present, "database": mute})
    with pytest.raises(AgentDependencyError) as caught:
        await core.create(caller(), "needy")
    assert "llm: this deployment has none" in caught.value.message
    assert "database: no answer" in caught.value.message
    assert "tools" not in caught.value.message
    assert "model endpoint" in caught.value.advice
    assert core.active == 0


async def test_present_dependencies_let_an_instance_be() -> None:
    core, _ = make(checks=dict.fromkeys(("tools", "database", "llm"), present))
    assert (await core.create(caller(), "needy")).entry.name == "needy"


async def test_an_unknown_agent_is_not_found() -> None:
    core, _ = make()
    with pytest.raises(UnknownAgentError):
        await core.create(caller(), "nobody")


class Hesitant(InLoopExecutor):
    async def start(self) -> None:
        await asyncio.sleep(0.01)
        await super().start()


async def test_a_full_pool_says_limit_use_and_when() -> None:
    pool = ResourcePool(Hesitant, warm=0)
    core = AgentExecutionCore(AgentClassRegistry.of(Plain), pool, DependencyChecker({}), CoreLimits(capacity=2))
    results = await asyncio.gather(*(core.create(caller(), "plain") for _ in range(20)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, WorkersBusyError)]
    assert len(refused) == 18
    assert core.active == 2
    assert (refused[0].limit, refused[0].limit_value, refused[0].use) == ("max_workers", 2, 2)
    assert refused[0].retry_after_s


async def test_one_user_cannot_have_every_worker() -> None:
    pool = ResourcePool(Hesitant, warm=0)
    registry = AgentClassRegistry.of(Plain)
    core = AgentExecutionCore(registry, pool, DependencyChecker({}), CoreLimits(capacity=10, user_capacity=3))
    results = await asyncio.gather(*(core.create(caller(), "plain") for _ in range(20)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, WorkersBusyError)]
    assert len(refused) == 17
    assert (refused[0].limit, refused[0].limit_value, refused[0].use) == ("max_workers_per_user", 3, 3)
    assert refused[0].retry_after_s
    bob = await core.create(caller("bob"), "plain")
    assert core.active == 4
    mine = next(result for result in results if not isinstance(result, BaseException))
    await core.drop(mine)
    assert (await core.create(caller(), "plain")).user_id != bob.user_id


async def test_a_reservation_lapses_and_a_running_instance_does_not() -> None:
    clock = Clock()
    core, _ = make(clock=clock)
    alice = caller()
    first, second = await core.create(alice, "plain"), await core.create(alice, "plain")
    await core.claim(alice, second.instance_id, "plain")
    clock.now = 29
    assert await core.expire_reservations() == 0
    clock.now = 30
    assert await core.expire_reservations() == 1
    with pytest.raises(UnknownInstanceError):
        await core.claim(alice, first.instance_id, "plain")
    assert core.active == 1


async def test_an_instance_is_its_runs_own() -> None:
    core, _ = make()
    alice, bob = caller(), caller("bob")
    instance = await core.create(alice, "plain")
    for who, agent in ((bob, "plain"), (caller(), "plain"), (alice, "needy")):
        with pytest.raises(UnknownInstanceError):
            await core.claim(who, instance.instance_id, agent)
    assert not await core.release(bob, instance.instance_id)
    assert (await core.claim(alice, instance.instance_id, "plain")) is instance
    with pytest.raises(UnknownInstanceError):
        await core.claim(alice, instance.instance_id, "plain")
    assert await core.release(alice, instance.instance_id)
    assert not await core.release(alice, instance.instance_id)
    assert core.active == 0


async def test_counts_are_honest(eventually: Eventually) -> None:
    core, pool = make(warm=2)
    cold = await core.create(caller(), "plain")
    assert not cold.warm
    task = asyncio.create_task(core.housekeeping(0.01))
    await eventually(lambda: pool.idle == 2)
    warm = await core.create(caller(), "plain")
    assert warm.warm
    await eventually(lambda: pool.idle == 2)
    counts = core.statistics(periodic_updates_active=4)
    assert (counts.created, counts.reused, counts.active, counts.idle, counts.capacity) == (4, 1, 2, 2, 3)
    assert counts.reuse_rate == 0.5
    assert counts.periodic_updates_active == 4
    assert counts.creation_p95_s >= counts.creation_p50_s >= 0
    task.cancel()
    await asyncio.wait({task})
    await core.aclose()
    assert (core.active, pool.idle) == (0, 0)


class Unstartable(InLoopExecutor):
    made = 0

    async def start(self) -> None:
        Unstartable.made += 1
        if Unstartable.made < 7:  # two workers, each of which the pool tries to start three times
            raise WorkerLostError("no more processes")
        await super().start()


async def test_a_worker_that_cannot_be_started_is_tried_again(eventually: Eventually) -> None:
    Unstartable.made = 0
    pool = ResourcePool(Unstartable, warm=1)
    reported: list[str] = []
    with pytest.raises(WorkerLostError):
        await pool.acquire()
    task = asyncio.create_task(pool.keep_filled(lambda error: reported.append(error.code)))
    await eventually(lambda: pool.idle == 1)
    assert reported == ["WORKER_LOST"]
    assert pool.created == 1
    task.cancel()
    await asyncio.wait({task})
    await pool.aclose()


async def test_whoever_needs_a_worker_does_not_notice_that_what_makes_them_is_started_again() -> None:
    Unstartable.made = 4
    pool = ResourcePool(Unstartable, warm=0)
    part = await pool.acquire()
    assert (Unstartable.made, pool.created) == (7, 1)
    await part.executor.kill()


async def test_a_worker_that_starts_too_slowly_is_given_up() -> None:
    class Slow(InLoopExecutor):
        async def start(self) -> None:
            await asyncio.sleep(10)

    def slow() -> AgentExecutor:
        return Slow()

    with pytest.raises(WorkerLostError, match="did not start"):
        await ResourcePool(slow, warm=0, start_timeout_s=0.02).acquire()


async def test_sub_agents_are_counted_apart_and_never_wait() -> None:
    pool = ResourcePool(InLoopExecutor, warm=0)
    limits = CoreLimits(capacity=1, children=2)
    core = AgentExecutionCore(AgentClassRegistry.of(Plain), pool, DependencyChecker({}), limits)
    parent = await core.claim(caller(), "", "plain")
    first, second = await core.child(parent, "plain"), await core.child(parent, "plain")
    assert (first.user_id, first.run_id, first.parent, first.running) == (parent.user_id, parent.run_id, parent, True)
    with pytest.raises(WorkersBusyError) as caught:
        await core.child(parent, "plain")
    assert (caught.value.limit, caught.value.limit_value, caught.value.use) == ("max_child_workers", 2, 2)
    assert (core.active, core.children_active, core.statistics().children_active) == (1, 2, 2)
    await core.drop(second)
    await core.drop(second)
    third = await core.child(parent, "plain")
    assert core.children_active == 2
    await core.aclose()
    assert (core.active, core.children_active) == (0, 0)
    await core.drop(third)
    assert (await core.claim(caller(), "", "plain")).running, "the place of the parent came back once"
    await core.aclose()


async def test_claims_wait_their_turn_and_a_worker_that_cannot_be_had_gives_the_place_back(
    eventually: Eventually,
) -> None:
    Unstartable.made = 0
    pool = ResourcePool(Unstartable, warm=0)
    core = AgentExecutionCore(AgentClassRegistry.of(Plain), pool, DependencyChecker({}), CoreLimits(capacity=1))
    for _ in range(2):
        with pytest.raises(WorkerLostError):
            await core.claim(caller(), "", "plain")
    first = await core.claim(caller(), "", "plain")
    waiting = asyncio.create_task(core.claim(caller("bob"), "", "plain"))
    await eventually(lambda: core.waiting == 1)
    await core.drop(first)
    assert (await waiting).user_id == "bob"
    assert core.waiting == 0
    await core.aclose()
