"""Runs bound to their caller: who keeps them alive, and when they lapse."""

import asyncio

from services.execution.domain.bound import BoundRuns
from services.execution.models import UserKey
from tests.conftest import Eventually

ALICE = UserKey("alice")


class World:
    def __init__(self, keeper_s: float = 30.0) -> None:
        self.lapsed: list[tuple[str, str]] = []
        self.ending = False
        self.bound = BoundRuns(keeper_s, lambda _, run, why: self.lapsed.append((run, why)), lambda: self.ending)


async def test_run_lapses_when_nobody_comes_in_time(eventually: Eventually) -> None:
    world = World(0.01)
    world.bound.expect(ALICE, "run-1")
    await eventually(lambda: world.lapsed)
    assert world.lapsed == [("run-1", "nobody kept it alive within 0.01 s")]


async def test_run_lapses_at_once_when_its_last_keeper_goes() -> None:
    world = World()
    world.bound.expect(ALICE, "run-1")
    with world.bound.keeping(ALICE, "run-1"):
        with world.bound.keeping(ALICE, "run-1"):
            pass
        assert world.lapsed == []
    assert world.lapsed == [("run-1", "its caller has gone away")]


async def test_keeper_in_time_stops_the_clock() -> None:
    world = World(0.01)
    world.bound.expect(ALICE, "run-1")
    with world.bound.keeping(ALICE, "run-1"):
        await asyncio.sleep(0.03)
        assert world.lapsed == []
        world.bound.forget(ALICE, "run-1")  # it has ended
    assert world.lapsed == []


async def test_run_that_is_not_bound_is_left_alone() -> None:
    world = World()
    with world.bound.keeping(ALICE, "run-1"):
        pass
    assert world.lapsed == []


async def test_our_own_end_takes_no_run_with_it() -> None:
    world = World()
    world.bound.expect(ALICE, "run-1")
    with world.bound.keeping(ALICE, "run-1"):
        world.ending = True
    assert world.lapsed == []
    world.bound.stop()
    assert len(world.bound) == 0


async def test_another_users_run_of_the_same_name_is_another_run() -> None:
    world = World()
    world.bound.expect(ALICE, "run-1")
    with world.bound.keeping(UserKey("bob"), "run-1"):
        pass
    assert world.lapsed == []
    world.bound.stop()
