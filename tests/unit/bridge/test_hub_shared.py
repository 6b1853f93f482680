"""Hubs of two bridges over one log: news from the other one, lost news, a log that becomes another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress

import pytest

from carrel.errors import StoreUnavailableError
from services.bridge.domain.checks import CheckOptions
from services.bridge.domain.hub import Hub, HubOptions
from services.bridge.domain.links import GatewayLink
from services.bridge.domain.reading import ReadQuery, read_events
from services.bridge.models import (
    Append,
    AppendResult,
    Change,
    Entries,
    Page,
    Position,
    ReadResult,
    Reset,
    ResetReason,
    ResumeCheck,
    ResumePoint,
    Standing,
    StoredEvent,
    Subscribed,
    Through,
)
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually

QUICK = HubOptions(retry_s=0.01, checks=CheckOptions(first_s=0.02, active_s=0.04, quiet_s=0.05))
NEVER = HubOptions(retry_s=0.01, checks=CheckOptions(first_s=3600, active_s=3600, quiet_s=3600))


class SharedLog(MemoryEventLog):
    """A log in memory that several hubs use, each through a ``View``; it can lose its tail."""

    def __init__(self) -> None:
        self.writings = 0
        super().__init__(clock=lambda: float(self.writings))
        self.views: list[View] = []

    def lose(self, count: int) -> None:
        """The newest entries are gone, as after a failover."""
        log = self._logs["alice"]
        for _ in range(count):
            log.entries.pop()
            log.times.pop()
        log.state.top -= count
        for producer in log.state.producers.values():
            producer.last_number = min(producer.last_number, log.state.top)

    def vanish(self) -> None:
        """Everything is gone."""
        self._logs.clear()

    def mark_at(self, offset: int) -> str:
        """Marks are told apart by the time of writing, for which the number of the call stands here."""
        log = self._logs.get("alice")
        entry = log.at(offset) if log else None
        return f"{entry.event_id} {log.times[offset - log.state.oldest]:g}" if log and entry else ""


class View:
    """One bridge's side of it: an ``EventLog`` and its ``ChangeFeed``."""

    def __init__(self, log: SharedLog) -> None:
        self.log = log
        self.told: Callable[[Change], None] = lambda change: None
        self.missed: Callable[[Sequence[str] | None], None] = lambda users: None
        self.listened: list[str] = []
        self.deaf = False
        self.broken = False
        self.looks = 0
        log.views.append(self)
        self.resolve_run, self.sweep, self.probe, self.close = log.resolve_run, log.sweep, log.probe, log.close

    @property
    def changes(self) -> View:
        return self

    @property
    def commits(self) -> int:
        return self.log.commits

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        self.log.writings += 1
        before = [self.log.mark_at(self.log._log(batch.user).state.top) for batch in batches]
        future = self.log.append(batches)
        results = [
            r._replace(previous=b, mark=self.log.mark_at(r.entries[-1].offset) if r.events else "")
            for r, b in zip(future.result(), before, strict=True)
        ]
        done: asyncio.Future[list[AppendResult]] = asyncio.get_running_loop().create_future()
        done.set_result(results)
        for view in self.log.views:
            if view is not self and not view.deaf:
                for batch, result in zip(batches, results, strict=True):
                    if result.events and batch.user in view.listened:
                        view.told(Change(batch.user, result.epoch, result.entries[-1].offset, result.mark))
        return done

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        self._check()
        read = await self.log.read(user, after, limit, max_bytes)
        last = read.entries[-1].offset if read.entries else 0
        return read._replace(anchor=self.log.mark_at(after), mark=self.log.mark_at(last))

    async def position(self, user: str) -> Position:
        position = await self.log.position(user)
        return position._replace(mark=self.log.mark_at(position.top))

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        return (await self.log.check_resume(user, point))._replace(mark=self.log.mark_at(point.offset))

    def follow(self, told: Callable[[Change], None], missed: Callable[[Sequence[str] | None], None]) -> None:
        self.told, self.missed = told, missed

    def on_return(self, told: Callable[[], None]) -> None:
        pass  # a hub has no use for it

    def listen(self, user: str) -> None:
        assert user not in self.listened
        self.listened.append(user)

    def unlisten(self, user: str) -> None:
        self.listened.remove(user)

    async def standings(self, users: Sequence[str]) -> list[Standing]:
        self._check()
        self.looks += 1
        found = []
        for user in users:
            log = self.log._logs.get(user)
            position = log.position() if log else Position("", 0, 1)
            mark = self.log.mark_at(position.top)
            found.append(Standing(position.epoch, position.top, mark, active=True))
        return found

    def _check(self) -> None:
        if self.broken:
            raise StoreUnavailableError("away")


class Bridge:
    """A hub over a view, with one gateway that has subscribed to alice and keeps what it gets."""

    def __init__(self, log: SharedLog, options: HubOptions) -> None:
        self.view = View(log)
        self.hub = Hub(self.view, options)
        self.link: GatewayLink = self.hub.attach("g")
        self.seen: list[str] = []
        self.resets: list[Reset] = []
        self.begun = False

    async def publish(self, *ids: str, first: int = 1, run: str = "r", told: bool = True) -> AppendResult:
        append = Append("alice", run, "t", f"{run}:p", 1, first, tuple(StoredEvent(name, b"x") for name in ids))
        results = await self.view.append([append])
        if told:
            self.hub.committed([append], results)
        return results[0]

    async def take(self) -> None:
        while items := await self.link.take(1 << 20):
            for item in items:
                if isinstance(item, Subscribed):
                    self.begun = True
                elif isinstance(item, Reset):
                    self.resets.append(item)
                    self.seen.append(f"reset to {item.point.offset}")
                elif isinstance(item, Entries):
                    self.seen += [event.event_id for event in item.events]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def bridges(stack: AsyncExitStack, eventually: Eventually, options: HubOptions) -> tuple[Bridge, Bridge]:
    log = SharedLog()

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def opened() -> Bridge:
        bridge = Bridge(log, options)
        for work in (bridge.take(), bridge.hub.check()):
            stack.push_async_callback(end, asyncio.create_task(work))
        stack.push_async_callback(bridge.hub.detach, bridge.link)
        bridge.hub.subscribe(bridge.link, "alice", 1, None)
        return bridge

    one, two = opened(), opened()
    await eventually(lambda: one.begun and two.begun)
    return one, two


async def test_news_of_the_other_bridges_appends_is_read_from_the_log(
    stack: AsyncExitStack, eventually: Eventually
) -> None:
    one, two = await bridges(stack, eventually, NEVER)
    await one.publish("a", "b")
    await two.publish("c", first=3)
    await one.publish("d", first=4)
    await eventually(lambda: one.seen == two.seen == ["a", "b", "c", "d"])
    assert one.resets == two.resets == []


async def test_lost_news_is_made_up_for_by_looking(stack: AsyncExitStack, eventually: Eventually) -> None:
    one, two = await bridges(stack, eventually, QUICK)
    two.view.deaf = True
    await one.publish("a", "b")
    await eventually(lambda: two.seen == ["a", "b"])
    two.view.broken = True
    await one.publish("c", first=3)
    await asyncio.sleep(0)
    two.view.broken = False
    await eventually(lambda: two.seen == ["a", "b", "c"])
    assert two.resets == []


async def test_appends_whose_outcome_is_unknown_are_looked_for_at_once(
    stack: AsyncExitStack, eventually: Eventually
) -> None:
    one, _ = await bridges(stack, eventually, NEVER)
    await one.publish("a", told=False)
    one.hub.recheck(["alice", "nobody"])
    await eventually(lambda: one.seen == ["a"])


async def test_own_appends_that_are_told_after_they_were_read_come_once(
    stack: AsyncExitStack, eventually: Eventually
) -> None:
    one, two = await bridges(stack, eventually, NEVER)
    append = Append("alice", "r", "t", "r:p", 1, 1, (StoredEvent("a", b""), StoredEvent("b", b"")))
    results = await one.view.append([append])
    await two.publish("c", run="r2")
    await eventually(lambda: one.seen == ["a", "b", "c"])
    one.hub.committed([append], results)
    await two.publish("d", run="r2", first=2)
    await eventually(lambda: one.seen == ["a", "b", "c", "d"])
    assert one.resets == []


async def test_lost_tail_is_told_though_nobody_writes(stack: AsyncExitStack, eventually: Eventually) -> None:
    one, two = await bridges(stack, eventually, QUICK)
    await one.publish("a", "b", "c")
    await eventually(lambda: one.seen == two.seen == ["a", "b", "c"])
    one.view.log.lose(2)
    await eventually(lambda: one.seen == two.seen == ["a", "b", "c", "reset to 0", "a"])
    assert [reset.reason for reset in one.resets] == [ResetReason.BEYOND_TOP]


@pytest.mark.parametrize("regrown", [2, 3])
async def test_offsets_used_again_are_never_taken_for_what_was_seen(
    stack: AsyncExitStack, eventually: Eventually, regrown: int
) -> None:
    one, two = await bridges(stack, eventually, NEVER)
    await one.publish("a", "b", "c")
    await eventually(lambda: one.seen == two.seen == ["a", "b", "c"])
    one.view.log.lose(2)
    names = ["x", "y", "z"][:regrown]
    one.view.deaf = True
    for n, name in enumerate(names):
        await two.publish(name, run="r2", first=1 + n)
    await eventually(lambda: two.seen == ["a", "b", "c", "reset to 0", "a", *names])
    # Its own next append follows the offset that it has seen last, or is beyond it; the entry there is another one.
    await one.publish("d", run="r3")
    await eventually(lambda: one.seen == ["a", "b", "c", "reset to 0", "a", *names, "d"])
    assert [reset.reason for reset in one.resets] == [ResetReason.EVENT_MISMATCH]


async def test_log_that_is_gone_is_told_and_begun_anew(stack: AsyncExitStack, eventually: Eventually) -> None:
    one, two = await bridges(stack, eventually, QUICK)
    await one.publish("a", "b")
    await eventually(lambda: two.seen == ["a", "b"])
    one.view.log.vanish()
    await eventually(lambda: bool(one.resets and two.resets))
    assert one.resets[0].reason is ResetReason.EPOCH_CHANGED
    await two.publish("c", run="r2")
    await eventually(lambda: one.seen == two.seen == ["a", "b", "reset to 0", "c"])


async def test_users_are_listened_for_while_somebody_wants_them(stack: AsyncExitStack, eventually: Eventually) -> None:
    one, _ = await bridges(stack, eventually, NEVER)
    assert one.view.listened == ["alice"]
    with one.hub.watch("bob"), one.hub.watch("alice"):
        assert sorted(one.view.listened) == ["alice", "bob"]
    assert one.view.listened == ["alice"]
    one.hub.subscribe(one.link, "alice", 2, None)
    assert one.view.listened == ["alice"]
    one.hub.unsubscribe(one.link, "alice", 2)
    assert one.view.listened == []


async def test_followers_hear_of_the_other_bridges_appends_and_of_a_lost_tail(
    stack: AsyncExitStack, eventually: Eventually
) -> None:
    one, two = await bridges(stack, eventually, QUICK)
    await two.publish("a", "b")
    seen: list[str] = []

    async def follow() -> None:
        start = ResumePoint((await two.view.position("alice")).epoch, 0, "")
        async for item in read_events(one.view, one.hub, ReadQuery("alice", start, follow=True)):
            if isinstance(item, Page):
                seen.extend(entry.event_id for entry in item.entries)
            elif not isinstance(item, Through):
                seen.append(item.reason.name)

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: seen == ["a", "b"])
        await two.publish("c", first=3)
        await eventually(lambda: seen == ["a", "b", "c"])
        one.view.log.lose(1)
        await two.publish("d", run="r2")
        await eventually(lambda: seen == ["a", "b", "c", "EVENT_MISMATCH", "a", "b", "d"])
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_quiet_logs_are_looked_at_less_and_all_at_once(stack: AsyncExitStack, eventually: Eventually) -> None:
    options = HubOptions(checks=CheckOptions(first_s=0.01, active_s=0.01, quiet_s=3600))
    one, _ = await bridges(stack, eventually, options)
    looks = one.view.looks
    await eventually(lambda: one.view.looks > looks + 3)  # a run is open


async def test_same_event_at_the_same_offset_does_not_hide_what_came_before_it(
    stack: AsyncExitStack, eventually: Eventually
) -> None:
    one, two = await bridges(stack, eventually, NEVER)
    await one.publish("a")
    await one.publish("b", run="ended")
    await one.publish("c", first=2)
    await eventually(lambda: one.seen == two.seen == ["a", "b", "c"])
    one.view.log.lose(2)
    one.view.deaf = True
    await two.publish("x", run="new")  # where b was
    await two.publish("c", first=2)  # sent again, since its producer had not heard of it, and at its old offset
    await two.publish("d", first=3)
    one.view.deaf = False
    await two.publish("e", first=4)
    await eventually(lambda: one.seen == ["a", "b", "c", "reset to 0", "a", "x", "c", "d", "e"])
