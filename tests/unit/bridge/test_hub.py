"""Subscriptions, fan-out and catching up, over the in-memory log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from carrel.errors import StoreUnavailableError
from services.bridge.domain.hub import Hub, HubOptions
from services.bridge.domain.links import GatewayLink, entries_size
from services.bridge.models import (
    Append,
    AppendResult,
    Bye,
    Entries,
    ReadResult,
    Refused,
    Reset,
    ResetReason,
    ResumePoint,
    Retention,
    StoredEvent,
    Subscribed,
)
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually


class Log(MemoryEventLog):
    """Reads take a while and fail on demand, as a real log's may."""

    def __init__(self) -> None:
        super().__init__(Retention(max_entries=50))
        self.fails = False
        self.reads = 0
        self.gate: asyncio.Event | None = None

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        self.reads += 1
        await asyncio.sleep(0)
        result = await super().read(user, after, limit, max_bytes)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(random.choice((0, 0, 0.0005)))  # what is committed now is not in the result
        if self.fails:
            raise StoreUnavailableError("gone")
        return result


class World:
    def __init__(self, log: Log, hub: Hub) -> None:
        self.log = log
        self.hub = hub
        self.numbers: dict[str, int] = {}
        self.late: list[tuple[list[Append], list[AppendResult]]] | None = None

    def tell(self) -> None:
        """Fan out what was committed while ``late`` was a list, in order."""
        assert self.late is not None
        while self.late:
            self.hub.committed(*self.late.pop(0))

    def put(self, user: str = "alice", count: int = 1, size: int = 10, gap: bool = False) -> None:
        first = self.numbers.get(user, 0) + (2 if gap else 1)
        self.numbers[user] = first + count - 1
        events = tuple(StoredEvent(f"{user}-{n}", b"x" * size) for n in range(first, first + count))
        append = Append(user, "r", "t", "p", 1, first, events, False, StoredEvent("gap", b"") if gap else None)
        results = self.log.append([append]).result()
        if self.late is None:
            self.hub.committed([append], results)
        else:
            self.late.append(([append], results))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    log = Log()
    failures: list[object] = []
    hub = Hub(
        log,
        HubOptions(queue_bytes=10_000, page_entries=7, retry_s=0.001),
        on_failure=lambda name, error: failures.append((name, error)),
    )
    yield World(log, hub)
    for link in list(hub._links):
        await hub.detach(link)
    assert failures == []


class Reader:
    """Takes what a link has and holds it to the promises of a subscription."""

    def __init__(self, link: GatewayLink) -> None:
        self.link = link
        self.offsets: list[int] = []
        self.notices: list[Subscribed | Reset | Refused | Bye] = []
        self.epoch = ""

    async def step(self) -> None:
        async with asyncio.timeout(5):
            for item in await self.link.take(2_000):
                if isinstance(item, Entries):
                    assert item.epoch == self.epoch
                    self.offsets += range(item.first_offset, item.first_offset + len(item.events))
                    continue
                self.notices.append(item)
                if isinstance(item, Subscribed):
                    self.epoch = item.position.epoch
                elif isinstance(item, Reset):
                    self.epoch = item.point.epoch

    async def until_top(self, top: int) -> None:
        while not self.offsets or self.offsets[-1] < top:
            await self.step()

    async def until_notices(self, count: int) -> None:
        while len(self.notices) < count:
            await self.step()


async def test_subscription_begins_at_the_top_and_goes_live(world: World) -> None:
    world.put(count=3)
    link = world.hub.attach("g")
    reader = Reader(link)
    world.hub.subscribe(link, "alice", 1, None)
    await reader.until_notices(1)
    reads = world.log.reads
    for _ in range(5):
        world.put()
    await reader.until_top(8)
    assert reader.offsets == [4, 5, 6, 7, 8]
    assert world.log.reads == reads


@pytest.mark.parametrize("seed", range(20))
async def test_every_entry_comes_once_and_in_order_whatever_the_timing(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.put(count=chance.randint(1, 20))
    epoch = (await world.log.position("alice")).epoch
    link = world.hub.attach("g")
    reader = Reader(link)
    world.hub.subscribe(link, "alice", 1, ResumePoint(epoch, 1, "alice-1"))

    world.late = []

    async def write() -> None:
        while world.numbers["alice"] < 45:
            world.put(count=chance.randint(1, 3), size=chance.choice((10, 10, 4000)))
            world.put("bob")
            await asyncio.sleep(chance.choice((0, 0, 0, 0.001)))
            if chance.random() < 0.5:
                world.tell()
        world.tell()

    writer = asyncio.create_task(write())
    while not writer.done() or reader.offsets[-1:] != [world.numbers["alice"]]:
        if reader.offsets[-1:] != [world.numbers["alice"]]:
            await reader.step()
        await asyncio.sleep(chance.choice((0, 0.001)))
    await writer
    assert reader.offsets == list(range(2, world.numbers["alice"] + 1))
    assert [type(notice) for notice in reader.notices] == [Subscribed]


async def test_entry_committed_while_the_log_is_read_is_not_forgotten(world: World, eventually: Eventually) -> None:
    world.put(count=2)
    link = world.hub.attach("g")
    epoch = (await world.log.position("alice")).epoch
    reader = Reader(link)
    world.log.gate = asyncio.Event()
    world.hub.subscribe(link, "alice", 1, ResumePoint(epoch, 1, "alice-1"))
    await eventually(lambda: world.log.reads)
    world.put()
    world.log.gate.set()
    await reader.until_top(3)
    assert reader.offsets == [2, 3]


async def test_entry_that_was_read_before_it_is_announced_is_not_repeated(world: World) -> None:
    world.put(count=2)
    world.late = []
    link = world.hub.attach("g")
    reader = Reader(link)
    epoch = (await world.log.position("alice")).epoch
    world.put(count=2)
    world.hub.subscribe(link, "alice", 1, ResumePoint(epoch, 1, "alice-1"))
    await reader.until_top(4)
    world.tell()
    reads = world.log.reads
    world.put()
    world.tell()
    await reader.until_top(5)
    assert (reader.offsets, world.log.reads) == ([2, 3, 4, 5], reads)


async def test_stopped_gateway_is_bounded_and_holds_up_nobody(world: World) -> None:
    stopped, quick = world.hub.attach("stopped"), world.hub.attach("quick")
    for link in (stopped, quick):
        world.hub.subscribe(link, "alice", 1, None)
    reader, late = Reader(quick), Reader(stopped)
    await reader.until_notices(1)
    await late.until_notices(1)
    for n in range(1, 41):
        world.put(size=1000)
        await reader.until_top(n)
    assert stopped.queued_bytes < 10_000 + 1100
    assert world.hub.users_behind == 1
    await late.until_top(40)
    assert late.offsets == list(range(1, 41))
    world.put()
    await late.until_top(41)
    assert world.hub.users_behind == 0


async def test_user_behind_beyond_the_retention_gets_a_reset_and_goes_on(world: World) -> None:
    link = world.hub.attach("g")
    world.hub.subscribe(link, "alice", 1, None)
    reader = Reader(link)
    await reader.until_notices(1)
    for _ in range(120):
        world.put(size=1000)
    await world.log.sweep()
    await reader.until_top(120)
    reset = reader.notices[1]
    assert isinstance(reset, Reset)
    assert (reset.reason, reset.point.offset) == (ResetReason.TRIMMED, 70)
    assert reader.offsets[-50:] == list(range(71, 121))


async def test_epoch_change_resets_without_repeating(world: World) -> None:
    world.put(count=2)
    link = world.hub.attach("g")
    world.hub.subscribe(link, "alice", 1, None)
    reader = Reader(link)
    await reader.until_notices(1)
    world.put()
    world.put(gap=True)
    world.put()
    await reader.until_top(6)
    assert reader.offsets == [3, 4, 5, 6]
    (reset,) = reader.notices[1:]
    assert isinstance(reset, Reset)
    assert (reset.reason, reset.point.offset, reset.point.event_id) == (ResetReason.EPOCH_CHANGED, 3, "alice-3")


async def test_unusable_position_is_told_and_reading_starts_at_the_oldest(world: World) -> None:
    world.put(count=3)
    link = world.hub.attach("g")
    reader = Reader(link)
    world.hub.subscribe(link, "alice", 1, ResumePoint("0" * 16, 2, "alice-2"))
    await reader.until_top(3)
    begun, reset = reader.notices
    assert isinstance(begun, Subscribed)
    assert isinstance(reset, Reset)
    assert (begun.recovered, reset.reason, reader.offsets) == (False, ResetReason.EPOCH_CHANGED, [1, 2, 3])


async def test_newer_generation_replaces_and_older_ones_are_ignored(world: World) -> None:
    link = world.hub.attach("g")
    reader = Reader(link)
    world.hub.subscribe(link, "alice", 2, None, connections=1)
    world.hub.subscribe(link, "alice", 1, None, connections=9)
    world.hub.subscribe(link, "alice", 3, None, connections=4)
    world.hub.unsubscribe(link, "alice", 2)
    await reader.until_notices(1)
    world.put()
    await reader.until_top(1)
    assert [notice.generation for notice in reader.notices if isinstance(notice, Subscribed)] == [3]
    assert (world.hub.subscriptions, world.hub.connections("alice")) == (1, 4)
    world.hub.unsubscribe(link, "alice", 3)
    assert (world.hub.subscriptions, world.hub.connections()) == (0, 0)


async def test_failing_log_refuses_new_subscriptions_and_delays_those_behind(
    world: World, eventually: Eventually
) -> None:
    link = world.hub.attach("g")
    reader = Reader(link)
    world.hub.subscribe(link, "alice", 1, None)
    await reader.until_notices(1)
    world.log.fails = True
    for _ in range(20):
        world.put(size=1000)
    while reader.offsets[-1:] != [10]:
        await reader.step()
    reads = world.log.reads
    await eventually(lambda: world.log.reads >= reads + 3)
    world.log.fails = False
    await reader.until_top(20)
    assert reader.offsets == list(range(1, 21))
    await world.log.close()
    world.hub.subscribe(link, "bob", 2, None)
    await reader.until_notices(2)
    assert isinstance(reader.notices[1], Refused)
    assert world.hub.subscriptions == 1


async def test_bye_comes_last_and_ends_links_of_before_and_after(world: World) -> None:
    link = world.hub.attach("g")
    world.hub.subscribe(link, "alice", 1, None)
    reader = Reader(link)
    await reader.until_notices(1)
    world.put()
    world.hub.say_bye(Bye("drain", 0.1))
    world.put()
    await reader.until_notices(2)
    assert (reader.offsets, await link.take(1)) == ([1], [])
    assert [type(item) for item in await world.hub.attach("late").take(100)] == [Bye]


async def test_detached_gateway_leaves_nothing_behind(world: World) -> None:
    link = world.hub.attach("g")
    world.hub.subscribe(link, "alice", 1, None)
    await world.hub.detach(link)
    await world.hub.detach(link)
    world.put()
    assert (world.hub.gateways, world.hub.subscriptions, world.hub._by_user) == (0, 0, {})


async def test_subscriptions_of_one_gateway_are_bounded() -> None:
    hub = Hub(MemoryEventLog(), HubOptions(max_subscriptions=1))
    link = hub.attach("g")
    hub.subscribe(link, "alice", 1, None)
    hub.subscribe(link, "bob", 2, None)
    reader = Reader(link)
    await reader.until_notices(2)
    assert {type(notice) for notice in reader.notices} == {Subscribed, Refused}
    await hub.detach(link)


async def test_entries_that_are_more_than_asked_for_are_handed_out_in_parts_and_in_order() -> None:
    link = GatewayLink("g", 1 << 20)
    sizes = [100, 100, 5_000, 100, 100, 100]
    events = tuple(StoredEvent(f"e{n}", b"x" * size) for n, size in enumerate(sizes))
    link.put(Reset("alice", 1, ResetReason.TRIMMED, ResumePoint("e", 0, "")))
    link.put(Entries("alice", 1, "e", 1, events), entries_size(events))
    link.put(Bye("later", 0.0))
    parts = [await link.take(600) for _ in range(3)]
    assert [
        [item.first_offset + n for item in part if isinstance(item, Entries) for n in range(len(item.events))]
        for part in parts
    ] == [[1, 2], [3], [4, 5, 6]]
    assert isinstance(parts[0][0], Reset)
    assert isinstance(parts[2][-1], Bye)
    assert link.queued_bytes == 0
