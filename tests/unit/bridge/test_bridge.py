"""The bridge as one thing: when it takes events, what it counts, what it tells the hub and the monitor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from carrel.errors import StoreUnavailableError, UnknownRunError
from services.bridge.domain.bridge import Bridge
from services.bridge.domain.reading import ReadQuery
from services.bridge.models import (
    ONE_USER,
    Append,
    AppendResult,
    Entries,
    IntegrationState,
    Page,
    Reset,
    ResetReason,
    ResumePoint,
    Retention,
    StoredEvent,
    Subscribed,
    Through,
)
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually


class Log(MemoryEventLog):
    """Holds its answers back when asked to, and fails on demand."""

    def __init__(self) -> None:
        super().__init__(Retention(max_entries=10))
        self.held: list[tuple[asyncio.Future[list[AppendResult]], list[AppendResult]]] | None = None
        self.fails = False
        self.appends = 0

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        self.appends += 1
        future: asyncio.Future[list[AppendResult]] = asyncio.get_running_loop().create_future()
        if self.fails:
            future.set_exception(StoreUnavailableError("full"))
        elif self.held is not None:
            self.held.append((future, super().append(batches).result()))
        else:
            return super().append(batches)
        return future


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
async def bridge(log: Log) -> AsyncIterator[Bridge]:
    failures: list[str] = []
    async with Bridge(log, on_failure=lambda name, error: failures.append(name)) as bridge:
        yield bridge
    assert failures == []


def make(first: int, last: int, *, run: str = "r", terminal: bool = False, gap: bool = False) -> Append:
    events = tuple(StoredEvent(f"{run}-{n}", b"blob") for n in range(first, last + 1))
    return Append("alice", run, "t", f"{run}:0:1", 1, first, events, terminal, StoredEvent("gap", b"") if gap else None)


async def test_nothing_reaches_the_log_while_the_bridge_is_not_active(bridge: Bridge, log: Log) -> None:
    bridge.monitor.note_failure(StoreUnavailableError("gone"))
    with pytest.raises(StoreUnavailableError):
        await bridge.publish([make(1, 1)])
    assert log.appends == 0


async def test_what_is_wrong_with_one_users_log_is_no_failure_of_the_store(bridge: Bridge) -> None:
    bridge.monitor.note_failure(StoreUnavailableError("rubbish", scope=ONE_USER))
    assert bridge.monitor.active


async def test_failed_append_turns_the_bridge_degraded(bridge: Bridge, log: Log) -> None:
    log.fails = True
    with pytest.raises(StoreUnavailableError):
        await bridge.publish([make(1, 1)])
    await asyncio.sleep(0)  # callbacks of a future that was done already run in the loop's next turn
    assert bridge.monitor.state is IntegrationState.DEGRADED


async def test_bridge_over_a_closed_log_does_not_start(log: Log) -> None:
    await log.close()
    with pytest.raises(StoreUnavailableError):
        async with Bridge(log):
            pass


async def test_events_are_counted_as_appended_duplicate_or_refused(bridge: Bridge) -> None:
    await bridge.publish([make(1, 3), make(2, 5), make(9, 9)])
    await asyncio.sleep(0)  # callbacks of a future that was done already run in the loop's next turn
    counts = bridge.counts
    assert (counts.appended, counts.duplicate, counts.refused) == (5, 2, 1)


async def test_events_are_fanned_out_in_the_order_of_commits_whoever_awaits_them(bridge: Bridge, log: Log) -> None:
    link = bridge.hub.attach("g")
    bridge.hub.subscribe(link, "alice", 1, None)
    assert [type(item) for item in await link.take(1000)] == [Subscribed]
    log.held = []
    futures = [bridge.publish([make(n, n)]) for n in (1, 2, 3)]
    second = asyncio.ensure_future(futures[1])
    for future, results in log.held:
        future.set_result(results)
    await second
    items = await link.take(1000)
    assert [item.first_offset for item in items if isinstance(item, Entries)] == [1, 2, 3]
    await bridge.hub.detach(link)


async def test_run_of_nobody_is_unknown(bridge: Bridge) -> None:
    await bridge.publish([make(1, 2)])
    run, epoch = await bridge.resolve_run("alice", "r")
    assert (run.last_offset, len(epoch)) == (2, 16)
    with pytest.raises(UnknownRunError):
        await bridge.resolve_run("bob", "r")


async def test_read_with_a_filter_tells_how_far_it_looked(bridge: Bridge) -> None:
    await bridge.publish([make(1, 2), make(1, 3, run="s")])
    query = ReadQuery("alice", keep=lambda entry: entry.event_id.startswith("r-"))
    page, through = [item async for item in bridge.read(query)]
    assert isinstance(page, Page)
    assert isinstance(through, Through)
    assert [entry.offset for entry in page.entries] == [1, 2]
    assert through.point == ResumePoint(page.epoch, 5, "s-3")


async def test_read_with_a_limit_can_be_gone_on_with(bridge: Bridge) -> None:
    await bridge.publish([make(1, 5)])
    seen: list[int] = []
    point: ResumePoint | None = None
    for _ in range(3):
        async for item in bridge.read(ReadQuery("alice", resume=point, limit=2)):
            if isinstance(item, Page):
                seen += (entry.offset for entry in item.entries)
            elif isinstance(item, Through):
                point = item.point
    assert seen == [1, 2, 3, 4, 5]


async def test_read_from_a_lost_position_resets_to_the_oldest(bridge: Bridge, log: Log) -> None:
    await bridge.publish([make(1, 25)])
    await log.sweep()
    epoch = (await log.position("alice")).epoch
    items = [item async for item in bridge.read(ReadQuery("alice", resume=ResumePoint(epoch, 3, "r-3")))]
    reset, page, _ = items
    assert isinstance(reset, Reset)
    assert isinstance(page, Page)
    assert (reset.reason, reset.point.offset, page.entries[0].offset) == (ResetReason.TRIMMED, 15, 16)


async def test_follower_is_reset_by_a_gap_and_ends_with_its_run(bridge: Bridge, eventually: Eventually) -> None:
    await bridge.publish([make(1, 2)])
    kinds: list[str] = []
    offsets: list[int] = []

    async def follow() -> None:
        async for item in bridge.read(ReadQuery("alice", run_id="r", follow=True)):
            kinds.append(type(item).__name__)
            if isinstance(item, Page):
                offsets.extend(entry.offset for entry in item.entries)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(5):
        await eventually(lambda: "Through" in kinds)
        await bridge.publish([make(5, 5, gap=True)])
        await bridge.publish([make(6, 6, terminal=True)])
        await following
    assert offsets == [1, 2, 3, 4, 5]
    assert kinds.count("Reset") == 1
    assert kinds[-1] == "Through"
