"""Idle and wall time on a clock of the test's own, periodic updates, and the operator's caps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from carrel import Agent, AgentContext, Request
from services.agent_instance.domain.activity import ActivityClock, TimeLimits, TimePolicy
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.registry import AgentClassRegistry
from tests.conftest import Eventually


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def clock_of(idle: float = 30, wall: float = 300, deadline: float | None = None) -> tuple[ActivityClock, Clock]:
    time = Clock()
    return ActivityClock(TimeLimits(idle, wall, deadline), clock=time, unix=lambda: 5000.0), time


def code(clock: ActivityClock) -> str:
    error = clock.overdue()
    return "" if error is None else error.code


def test_idle_time_ends_with_activity() -> None:
    clock, time = clock_of()
    time.now += 29
    assert code(clock) == ""
    clock.touch()
    time.now += 29
    assert code(clock) == ""
    time.now += 1
    assert code(clock) == "AGENT_IDLE_TIMEOUT"


def test_a_tool_counts_up_to_its_own_limit() -> None:
    clock, time = clock_of()
    clock.tool_began("a", 50)
    time.now += 50
    assert clock.idle_s == 0
    time.now += 29
    assert code(clock) == ""
    time.now += 1
    assert code(clock) == "AGENT_IDLE_TIMEOUT"


def test_a_tools_end_is_activity_and_an_unknown_end_is_none() -> None:
    clock, time = clock_of()
    clock.tool_began("a", 50)
    time.now += 20
    clock.tool_ended("a")
    time.now += 20
    clock.tool_ended("a")
    assert clock.idle_s == 20


def test_a_stopped_clock_counts_neither_idle_nor_own_time() -> None:
    clock, time = clock_of(idle=30, wall=40)
    time.now += 10
    with clock.stopped():
        time.now += 500
        assert code(clock) == ""
        with clock.stopped():
            time.now += 500
    assert clock.idle_s == 10
    assert clock.agent_s == 10
    assert clock.silent_s == 1010
    clock.touch()
    time.now += 29
    assert code(clock) == ""
    clock.touch()
    time.now += 1
    assert code(clock) == "ENGINE_TIMEOUT"


def test_a_tool_that_began_before_a_stop_keeps_its_whole_time() -> None:
    clock, time = clock_of(idle=5)
    clock.tool_began("a", 10)
    with clock.stopped():
        time.now += 100
    time.now += 9
    assert clock.idle_s == 0


def test_the_engines_deadline_counts_always() -> None:
    clock, time = clock_of(deadline=5060.0)
    with clock.stopped():
        time.now += 59
        assert not clock.past_deadline
        time.now += 1
        assert code(clock) == "ENGINE_TIMEOUT"
        assert clock.past_deadline


def test_a_class_asks_and_the_operator_caps() -> None:
    class Long(Agent):
        name = "long"
        idle_timeout_s: ClassVar[float | None] = 120
        timeout_s: ClassVar[float | None] = 100_000

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
            return {}

    class Plain(Long):
        name = "plain"
        idle_timeout_s = None
        timeout_s = None

    registry = AgentClassRegistry.of(Long, Plain)
    policy = TimePolicy(idle_s=30, idle_max_s=60, wall_s=300, wall_max_s=3600)
    assert policy.limits(registry["long"], None) == TimeLimits(60, 3600, None)
    assert policy.limits(registry["plain"], 7.0) == TimeLimits(30, 300, 8.0)


async def test_periodic_updates_are_bounded_in_number(eventually: Eventually) -> None:
    manager = PeriodicUpdateManager(interval_s=0.01, limit=2)
    said: dict[int, int] = {}

    async def agent(index: int) -> None:
        async def say() -> None:
            said[index] = said.get(index, 0) + 1

        await manager.speak_for(lambda: 1.0, say)

    tasks = [asyncio.create_task(agent(index)) for index in range(4)]
    await eventually(lambda: sum(said.values()) >= 6)
    assert len(said) == 2
    assert manager.active == 2
    for task in tasks[:2]:
        task.cancel()
    await eventually(lambda: len(said) == 4)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert manager.active == 0


async def test_an_agent_that_speaks_itself_is_not_spoken_for() -> None:
    manager = PeriodicUpdateManager(interval_s=0.02, limit=2)
    said = []

    async def say() -> None:
        said.append(1)

    task = asyncio.create_task(manager.speak_for(lambda: 0.0, say))
    await asyncio.wait({task}, timeout=0.1)
    task.cancel()
    await asyncio.wait({task})
    assert not said
