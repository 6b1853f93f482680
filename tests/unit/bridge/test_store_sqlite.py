"""The SQLite log beyond the common contract: reopening, faults of the file, two processes, bounds, slices."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carrel.errors import InternalError, QueueFullError, StoreUnavailableError
from services.bridge import store_sqlite, tables
from services.bridge.models import Append, Refusal, RefusalReason, ResumePoint, Retention, StoredEvent
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions
from services.bridge.store_sqlite_session import LogSession

QUIET = SqliteOptions(sweep_interval_s=3600)


def make(
    first: int, last: int, *, user: str = "alice", fence: int = 1, terminal: bool = False, size: int = 10
) -> Append:
    events = tuple(StoredEvent(f"e{n}", b"x" * size) for n in range(first, last + 1))
    return Append(user, f"run-{user}", "t", f"p-{user}", fence, first, events, terminal)


async def offsets(log: SqliteEventLog, user: str = "alice") -> list[int]:
    return [entry.offset for entry in (await log.read(user, 0, 10_000)).entries]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[SqliteEventLog]:
    log = await SqliteEventLog.open(path, options=QUIET)
    yield log
    await log.close()


class Disk:
    """Stands between the log and the file: ``full`` lets the file grow no further."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._open = tables.open_writer
        monkeypatch.setattr(store_sqlite, "open_writer", self.open)

    def open(self, path: Path, synchronous: str) -> sqlite3.Connection:
        connection = self._open(path, synchronous)
        if self.full:
            limit_pages(connection)
        return connection


def limit_pages(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


@pytest.mark.parametrize("count", [3, 300, 1000])
async def test_reopening_keeps_entries_numbers_fence_seal_and_epoch(path: Path, count: int) -> None:
    log = await SqliteEventLog.open(path, options=QUIET)
    for start in range(1, count, 50):
        await log.append([make(start, min(start + 49, count), fence=4)])
    await log.append([make(1, 2, user="bob", terminal=True)])
    before, run = await log.position("alice"), await log.resolve_run("alice", "run-alice")
    await log.close()

    log = await SqliteEventLog.open(path, options=QUIET)
    assert await log.position("alice") == before
    assert await log.resolve_run("alice", "run-alice") == run
    assert await offsets(log) == list(range(1, count + 1))
    results = await log.append(
        [make(1, 1, fence=4), make(count, count + 1, fence=4), make(count + 3, count + 3, fence=4)]
    )
    assert [(r.through, len(r.events)) for r in results] == [(count, 0), (count + 1, 1), (count + 1, 0)]
    assert results[1].first_offset == count + 1
    stale, sealed = await log.append([make(1, 1, fence=3), make(3, 3, user="bob")])
    assert stale.refusal == Refusal(RefusalReason.STALE_FENCE, count + 1)
    assert sealed.refusal == Refusal(RefusalReason.SEALED, 2)
    assert (await log.check_resume("alice", ResumePoint(before.epoch, 2, "e2"))).reset is None
    await log.close()


async def test_fence_that_a_duplicate_raised_is_kept(path: Path) -> None:
    log = await SqliteEventLog.open(path, options=QUIET)
    await log.append([make(1, 2, fence=1)])
    await log.append([make(1, 2, fence=8)])
    await log.close()
    log = await SqliteEventLog.open(path, options=QUIET)
    (stale,) = await log.append([make(3, 3, fence=7)])
    assert stale.refusal == Refusal(RefusalReason.STALE_FENCE, 2)
    await log.close()


async def test_second_log_on_the_same_file_is_refused_until_the_first_is_closed(
    log: SqliteEventLog, path: Path
) -> None:
    with pytest.raises(StoreUnavailableError, match="in use by another process"):
        await SqliteEventLog.open(path)
    await log.close()
    await (await SqliteEventLog.open(path)).close()


async def test_full_disk_acknowledges_nothing_and_works_again_once_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    log = await SqliteEventLog.open(path, options=QUIET)
    await log.append([make(1, 2)])
    disk.full = True
    await log._writer.call(lambda session: limit_pages(session.connection))
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="full"):
            await log.append([make(3, 50, size=5000), make(1, 1, user="bob")])
    assert await offsets(log) == [1, 2]
    assert await offsets(log, "bob") == []
    disk.full = False
    results = await log.append([make(3, 50, size=5000), make(1, 1, user="bob")])
    assert [(r.through, r.first_offset) for r in results] == [(50, 3), (1, 1)]
    await log.close()


async def test_file_locked_by_another_program_delays_and_then_fails_appends_but_not_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BUSY_S", 0.05)
    log = await SqliteEventLog.open(path, options=QUIET)
    await log.append([make(1, 1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await log.append([make(2, 2)])
    with pytest.raises(StoreUnavailableError):
        await log.probe()
    assert await offsets(log) == [1]
    other.execute("ROLLBACK")
    other.close()
    await log.probe()
    (result,) = await log.append([make(2, 2)])
    assert result.first_offset == 2
    await log.close()


async def test_removed_file_is_noticed_by_the_probe_and_a_new_log_has_another_epoch(
    log: SqliteEventLog, path: Path
) -> None:
    (result,) = await log.append([make(1, 2)])
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.unlink()
    with pytest.raises(StoreUnavailableError):
        await log.probe()
    await log.probe()
    position = await log.position("alice")
    assert (position.top, position.epoch == result.epoch) == (0, False)
    (again,) = await log.append([make(3, 3)])
    assert again.refusal == Refusal(RefusalReason.GAP, 0)


@pytest.mark.parametrize("kind", ["garbage", "foreign", "folder", "no folder"])
async def test_what_is_no_event_log_is_refused_at_open(path: Path, kind: str) -> None:
    if kind == "garbage":
        path.write_bytes(b"not a database at all, " * 500)
    elif kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    elif kind == "folder":
        path.mkdir()
    else:
        path = path / "missing" / "log.db"
    with pytest.raises(StoreUnavailableError) as caught:
        await SqliteEventLog.open(path)
    assert caught.value.advice


async def test_damage_under_way_fails_appends_until_the_file_is_whole_again(log: SqliteEventLog, path: Path) -> None:
    await log.append([make(1, 2)])

    async def rename(broken: bool) -> None:
        def job(session: LogSession) -> None:
            old, new = ("entries", "gone") if broken else ("gone", "entries")
            session.connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

        await log._writer.call(job)

    await rename(broken=True)
    with pytest.raises(StoreUnavailableError):
        await log.append([make(3, 3)])
    with pytest.raises(StoreUnavailableError):
        await log.read("alice", 0, 10)
    await rename(broken=False)
    (result,) = await log.append([make(3, 3)])
    assert result.first_offset == 3


async def test_value_the_store_cannot_take_fails_its_own_call_alone(log: SqliteEventLog) -> None:
    release = hold_writer(log)
    good = log.append([make(1, 1)])
    bad = log.append([make(1, 1, user="\ud800")])
    also_good = log.append([make(2, 2), make(1, 1, user="bob")])
    release.set()
    with pytest.raises(InternalError):
        await bad
    assert [r.first_offset for r in await good + await also_good] == [1, 2, 1]


async def test_appends_beyond_the_queue_bound_are_refused_at_once_and_taken_later(path: Path) -> None:
    log = await SqliteEventLog.open(path, options=SqliteOptions(max_queued_bytes=20_000, sweep_interval_s=3600))
    release = hold_writer(log)
    pending = [log.append([make(1, 1, size=8_000)])]
    with pytest.raises(QueueFullError) as caught:
        pending.append(log.append([make(2, 2, size=8_000)]))
    assert caught.value.retry_after_s is not None
    release.set()
    await asyncio.gather(*pending)
    (result,) = await log.append([make(2, 2, size=8_000)])
    assert result.first_offset == 2
    await log.close()


async def test_what_was_queued_before_close_is_written(path: Path) -> None:
    log = await SqliteEventLog.open(path, options=QUIET)
    pending = [log.append([make(n, n)]) for n in range(1, 2000)]
    await log.close()
    assert (await pending[-1])[0].through == 1999
    log = await SqliteEventLog.open(path, options=QUIET)
    assert len(await offsets(log)) == 1999
    await log.close()


async def test_states_that_fell_out_of_memory_are_found_again(path: Path) -> None:
    log = await SqliteEventLog.open(path, options=SqliteOptions(max_users=2, sweep_interval_s=3600))
    for n in range(1, 8):
        results = await log.append([make(n, n, user=f"u{u}") for u in range(10)])
        assert [r.first_offset for r in results] == [n] * 10
    await log.close()


async def test_retention_goes_on_by_itself_between_appends(path: Path) -> None:
    log = await SqliteEventLog.open(
        path, options=SqliteOptions(sweep_interval_s=0.01), retention=Retention(max_entries=100)
    )
    async with asyncio.timeout(20):
        for start in range(1, 3001, 50):
            await log.append([make(start, start + 49)])
        while (await log.position("alice")).oldest != 2901:  # noqa: ASYNC110  (the retention announces nothing)
            await asyncio.sleep(0.01)
    assert await offsets(log) == list(range(2901, 3001))
    await log.close()


async def test_many_users_are_swept_in_several_slices(path: Path) -> None:
    log = await SqliteEventLog.open(path, options=QUIET, retention=Retention(max_entries=5))
    await log.append([make(1, 8, user=f"u{u}") for u in range(450)])
    assert await log.sweep() == 450 * 3
    assert await log.sweep() == 0
    assert (await log.position("u449")).oldest == 4
    await log.close()


def hold_writer(log: SqliteEventLog) -> threading.Event:
    """Keep the writer's thread busy until the event is set, so that what follows is one group."""
    release = threading.Event()
    _held = log._writer.call(lambda session: release.wait(10))
    return release
