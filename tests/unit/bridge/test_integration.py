"""The IntegrationState machine, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from carrel.errors import StoreUnavailableError
from services.bridge.domain.integration import IntegrationMonitor, RecoveryOptions
from services.bridge.models import IntegrationState as S


class World:
    """A store that works or not, and a sleep that ends when the test says so."""

    def __init__(self) -> None:
        self.works = True
        self.hangs = False
        self.probes = 0
        self.states: list[S] = []
        self.delays: asyncio.Queue[float] = asyncio.Queue()
        self.awake = asyncio.Semaphore(0)
        options = RecoveryOptions(active_probe_s=3600, probe_timeout_s=0.02, life_probe_s=0.1)
        self.monitor = IntegrationMonitor(
            self.probe, options, changed=self.states.append, sleep=self.sleep, clock=lambda: 7.0
        )

    async def probe(self) -> None:
        self.probes += 1
        if self.hangs:
            await asyncio.Event().wait()
        if not self.works:
            raise StoreUnavailableError("the disk is gone")

    async def sleep(self, seconds: float) -> None:
        self.delays.put_nowait(seconds)
        await self.awake.acquire()

    async def next_delay(self) -> float:
        async with asyncio.timeout(5):
            return await self.delays.get()

    def fail(self) -> None:
        self.works = False
        self.monitor.note_failure(StoreUnavailableError("append failed"))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.monitor.initialize()
    task = asyncio.create_task(world.monitor.run())
    yield world
    task.cancel()
    await asyncio.wait([task])


async def test_start_goes_through_initializing_to_active(world: World) -> None:
    assert world.states == [S.INITIALIZING, S.ACTIVE]
    world.monitor.require_active()


@pytest.mark.parametrize("hangs", [False, True])
async def test_start_without_a_store_fails_at_once(hangs: bool) -> None:
    world = World()
    assert world.monitor.state is S.UNINITIALIZED
    world.works, world.hangs = False, hangs
    with pytest.raises(StoreUnavailableError):
        await world.monitor.initialize()
    assert world.states == [S.INITIALIZING, S.FAILED]


async def test_failure_leaves_active_at_once_and_says_when_to_try_again(world: World) -> None:
    world.fail()
    assert world.monitor.state is S.DEGRADED
    with pytest.raises(StoreUnavailableError) as caught:
        world.monitor.require_active()
    assert caught.value.retry_after_s == 1.0
    assert "append failed" in caught.value.message


async def test_recovery_waits_longer_each_time_and_returns_to_active(world: World) -> None:
    world.fail()
    assert await world.next_delay() == 1.0
    world.awake.release()
    assert await world.next_delay() == 2.0
    assert world.monitor.attempts == 1
    world.works = True
    world.awake.release()
    await until_active(world)
    assert world.states == [S.INITIALIZING, S.ACTIVE, S.DEGRADED, S.ACTIVE]
    assert world.monitor.attempts == 0


async def test_three_failed_recoveries_end_in_failed_which_still_probes_and_returns(world: World) -> None:
    world.fail()
    for expected in (1.0, 2.0, 4.0, 30.0, 30.0):
        assert await world.next_delay() == expected
        if expected < 30:
            assert world.monitor.state is S.DEGRADED
        else:
            assert world.monitor.state is S.FAILED
        world.awake.release()
    assert await world.next_delay() == 30.0
    assert world.monitor.attempts == 5
    world.works = True
    world.awake.release()
    await until_active(world)
    assert world.states[2:] == [S.DEGRADED, S.FAILED, S.ACTIVE]


async def test_probe_that_hangs_counts_as_failed(world: World) -> None:
    world.fail()
    world.hangs = True
    assert await world.next_delay() == 1.0
    world.awake.release()
    assert await world.next_delay() == 2.0
    assert world.monitor.last_error == "the event log does not answer"


async def test_failure_noted_during_a_recovery_is_looked_into_and_does_not_spin(world: World) -> None:
    world.fail()
    await world.next_delay()
    world.monitor.note_failure(StoreUnavailableError("late"))
    world.works = True
    world.awake.release()
    await until_active(world)
    await asyncio.sleep(0.05)
    assert world.monitor.active
    assert world.delays.empty()


@pytest.mark.parametrize("failures", [0, 1, 3, 4])
async def test_sign_of_life_ends_the_wait_in_every_state(world: World, failures: int) -> None:
    world.fail()
    for _ in range(failures):
        await world.next_delay()
        world.awake.release()
    await world.next_delay()
    assert world.monitor.state is (S.DEGRADED if failures < 3 else S.FAILED)
    world.works = True
    world.monitor.note_life()
    await until_active(world)
    assert world.monitor.attempts == 0


async def test_signs_of_life_that_were_none_probe_now_and_then_and_use_up_no_recovery(world: World) -> None:
    world.fail()
    assert await world.next_delay() == 1.0
    loop = asyncio.get_running_loop()
    began, before = loop.time(), world.probes
    while loop.time() < began + 0.25 or world.probes - before < 2:
        world.monitor.note_life()
        await asyncio.sleep(0.001)
    lasted = loop.time() - began
    assert 2 <= world.probes - before <= 1 + lasted / 0.1
    assert world.monitor.state is S.DEGRADED
    assert world.delays.empty()
    world.awake.release()
    assert await world.next_delay() == 2.0
    assert world.monitor.attempts == 1


async def test_sign_of_life_while_all_is_well_is_nothing_to_look_into(world: World) -> None:
    world.monitor.note_life()
    world.fail()
    before = world.probes
    assert await world.next_delay() == 1.0
    await asyncio.sleep(0.02)
    assert world.probes - before <= 1  # the one that a failure is followed by


async def until_active(world: World) -> None:
    async with asyncio.timeout(5):
        while not world.monitor.active:  # noqa: ASYNC110  (the machine announces states, not to this task)
            await asyncio.sleep(0.001)
