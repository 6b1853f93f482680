"""What goes on beside the runs, when the store does not: it is told why, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from carrel.errors import StoreUnavailableError
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.limits import MemoryLimits
from services.execution.domain.loops import clean_up_for_ever, expire_memories, keep_leases
from services.execution.domain.services import RunOptions, RunServices
from services.execution.store import PageKey, RunStore
from tests.conftest import Eventually


class AwayStore:
    """Counts what it is asked, and refuses it."""

    def __init__(self) -> None:
        self.asked = 0

    async def renew_leases(self) -> None:
        self.asked += 1
        raise StoreUnavailableError("the disk is full")

    sweep = renew_leases


class Services:
    """As much of the run services as the loops need to fail."""

    def __init__(self, store: AwayStore) -> None:
        self.store = store


FACTORY = cast(ExecutionEngineFactory, None)


@pytest.mark.parametrize(
    ("loop", "event"),
    [
        (lambda store: keep_leases(cast(RunStore, store), FACTORY, 0.001), "leases not renewed"),
        (lambda store: clean_up_for_ever(cast(RunServices, Services(store)), FACTORY, 0.001), "clean-up failed"),
    ],
)
async def test_loop_says_why_the_store_failed_and_tries_again(
    loop: Callable[[AwayStore], Coroutine[Any, Any, Any]],
    event: str,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = AwayStore()
    task = asyncio.create_task(loop(store))
    await eventually(lambda: store.asked >= 2)
    task.cancel()
    await asyncio.wait({task})
    record = caplog.records[0]
    assert record.getMessage() == event
    assert vars(record)["fields"] == {"code": "STORE_UNAVAILABLE", "reason": "the disk is full"}


class CountingStore:
    """Renews unless told otherwise, and counts how often it was asked to take over."""

    def __init__(self) -> None:
        self.away = False
        self.renewed = self.taken = 0

    async def renew_leases(self) -> None:
        if self.away:
            raise StoreUnavailableError("restarting")
        self.renewed += 1

    async def take_over(self) -> tuple[()]:
        self.taken += 1
        return ()


async def test_after_the_store_was_away_for_a_lease_others_get_the_time_of_one_to_renew_theirs(
    eventually: Eventually,
) -> None:
    store = CountingStore()
    task = asyncio.create_task(keep_leases(cast(RunStore, store), FACTORY, 0.3))
    await eventually(lambda: store.taken >= 2)
    store.away = True
    await asyncio.sleep(0.5)
    taken, renewed = store.taken, store.renewed
    store.away = False
    await eventually(lambda: store.renewed > renewed)
    assert store.taken == taken
    await eventually(lambda: store.taken > taken)
    assert store.renewed >= renewed + 3
    task.cancel()
    await asyncio.wait({task})


class Slices:
    """Run services, and a store that has so many slices of what agents keep."""

    def __init__(self, slices: int, retention_s: float) -> None:
        self.store = self
        self.options = RunOptions(memories=MemoryLimits(retention_s=retention_s))
        self.asked: list[tuple[int, PageKey | None]] = []
        self._slices = slices

    def clock(self) -> int:
        return 100_000_000

    async def expire_memories(self, before: int, after: PageKey | None) -> PageKey | None:
        self.asked.append((before, after))
        at = int(after[0]) + 1 if after else 1
        return (at,) if at < self._slices else None


async def test_what_agents_keep_is_looked_at_in_turn_so_much_at_a_time() -> None:
    services = Slices(13, retention_s=30)
    place = await expire_memories(cast(RunServices, services), None)
    assert place == (10,)
    assert services.asked[0] == (70_000_000, None)
    assert await expire_memories(cast(RunServices, services), place) is None
    assert services.asked[10:] == [(70_000_000, (n,)) for n in (10, 11, 12)]
    for_ever = Slices(1, retention_s=0)
    await expire_memories(cast(RunServices, for_ever), None)
    assert for_ever.asked == [(0, None)]
