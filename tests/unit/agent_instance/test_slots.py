"""Places for workers: bounded in all and per user, handed out in turn among those who wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrel.errors import WorkersBusyError
from services.agent_instance.domain.slots import FairSlots
from tests.conftest import Eventually


def slots(**changes: Any) -> FairSlots:
    values = {"capacity": 2, "user_capacity": 2, "max_waiting": 10, "max_waiting_per_user": 5, "wait_s": 5.0}
    return FairSlots(**{**values, **changes})


async def test_users_take_turns_however_many_one_asks_for(eventually: Eventually) -> None:
    places = slots(capacity=1, max_waiting_per_user=10)
    places.take("holder")
    order: list[str] = []

    async def wait(user: str) -> None:
        await places.wait(user)
        order.append(user)

    async with asyncio.TaskGroup() as tasks:
        for user in ("greedy", "greedy", "greedy", "quiet", "greedy", "other"):
            tasks.create_task(wait(user))
            await asyncio.sleep(0)
        holders = ["holder", "greedy", "quiet", "other", "greedy", "greedy"]
        for number, holder in enumerate(holders, 1):
            places.give(holder)
            await eventually(lambda number=number: len(order) == number)  # type: ignore[misc]
    assert order == ["greedy", "quiet", "other", "greedy", "greedy", "greedy"]
    places.give("greedy")
    assert (places.taken, places.waiting) == (0, 0)


async def test_a_user_at_their_own_bound_waits_and_holds_up_nobody() -> None:
    places = slots(capacity=5, user_capacity=1)
    places.take("alice")
    second = asyncio.create_task(places.wait("alice"))
    await asyncio.sleep(0)
    await places.wait("bob")
    assert not second.done()
    places.give("bob")
    await asyncio.sleep(0)
    assert not second.done(), "a place of another's is no use to who is at the bound"
    places.give("alice")
    await second
    places.give("alice")


async def test_who_waits_is_bounded_in_all_and_per_user() -> None:
    places = slots(capacity=1, max_waiting=3, max_waiting_per_user=2)
    places.take("alice")
    waiting = [asyncio.create_task(places.wait(user)) for user in ("bob", "bob", "carol")]
    await asyncio.sleep(0)
    with pytest.raises(WorkersBusyError) as all_of_them:
        await places.wait("dave")
    assert (all_of_them.value.limit, all_of_them.value.limit_value) == ("max_waiting", 3)
    waiting[2].cancel()
    await asyncio.wait(waiting[2:])
    with pytest.raises(WorkersBusyError) as own:
        await places.wait("bob")
    assert (own.value.limit, own.value.use) == ("max_waiting_per_user", 2)
    assert own.value.retry_after_s
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert places.waiting == 0


async def test_nobody_waits_for_ever() -> None:
    places = slots(capacity=1, wait_s=0.01)
    places.take("alice")
    with pytest.raises(WorkersBusyError, match="no worker came free"):
        await places.wait("bob")
    assert places.waiting == 0
    places.give("alice")
    assert places.taken == 0


async def test_a_place_handed_to_who_has_just_left_goes_to_the_next() -> None:
    places = slots(capacity=1)
    places.take("alice")
    first, second = asyncio.create_task(places.wait("bob")), asyncio.create_task(places.wait("carol"))
    await asyncio.sleep(0)
    places.give("alice")  # bob's now, who has not run since
    first.cancel()
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert not second.cancelled()
    assert places.taken == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["wait", "cancel", "give"])), max_size=60))
def test_places_are_never_lost_nor_given_twice(steps: list[tuple[str, str]]) -> None:
    async def play() -> None:
        places = slots(capacity=2, user_capacity=2, max_waiting=4, max_waiting_per_user=3)
        asked: list[tuple[str, asyncio.Task[None]]] = []
        held: list[str] = []

        async def settle() -> None:
            for _ in range(6):
                await asyncio.sleep(0)
            for user, task in list(asked):
                if task.done():
                    asked.remove((user, task))
                    if not task.cancelled() and task.exception() is None:
                        held.append(user)

        for user, step in steps:
            own = [task for name, task in asked if name == user]
            if step == "wait":
                asked.append((user, asyncio.create_task(places.wait(user))))
            elif step == "cancel" and own:
                own[0].cancel()
            elif step == "give" and user in held:
                held.remove(user)
                places.give(user)
            await settle()
            assert places.taken == len(held) <= 2
            assert places.waiting == len(asked)
            assert not asked or places.taken == 2, "somebody waits although a place is free"
        for _, task in asked:
            task.cancel()
        await settle()
        assert places.waiting == 0

    asyncio.run(play())
