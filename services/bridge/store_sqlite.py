"""The event log in one SQLite file: durable, for one bridge process. The methods' guarantees are ``store.EventLog``'s.

Writing happens in one thread (``store_sqlite_writer``), reading on read-only connections in a small pool, so that
neither waits for the other. With ``synchronous="NORMAL"``, the default, an acknowledged event survives the death of the
process at any instant; a power failure may take the last moments' events, which the epoch and the event ids of resuming
readers and the numbers of producers bring to light. ``"FULL"`` flushes to the disk before it acknowledges and survives
that too, at the price of one flush per group.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar

from carrel.errors import StoreUnavailableError
from services.bridge.models import (
    Append,
    AppendResult,
    Position,
    ReadResult,
    ResumeCheck,
    ResumePoint,
    Retention,
    RunInfo,
)
from services.bridge.store_rules import resume_reset
from services.bridge.store_sqlite_checkpoint import Checkpointer
from services.bridge.store_sqlite_session import LogSession
from services.bridge.store_sqlite_sweep import Sweeper
from services.bridge.store_sqlite_writer import LogWriter, lost
from services.bridge.tables import (
    entry_id_at,
    load_run,
    load_user,
    open_reader,
    open_writer,
    read_entries,
    read_position,
)

__all__ = ["SqliteEventLog", "SqliteOptions", "Synchronous"]

Synchronous = Literal["NORMAL", "FULL"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SqliteOptions:
    """How SQLite is used.

    Args:
        synchronous: What an acknowledged event survives; see the module's text.
        readers: Threads that read.
        max_users: Users whose state is kept in memory.
        max_queued_bytes: Beyond this, appends are refused instead of queued.
        sweep_interval_s: Seconds between two slices of the retention when nothing is known to be due.
    """

    synchronous: Synchronous = "NORMAL"
    readers: int = 2
    max_users: int = 10_000
    max_queued_bytes: int = 64 << 20
    sweep_interval_s: float = 1.0


class SqliteEventLog:
    """An ``EventLog`` over one file; open it with ``SqliteEventLog.open``."""

    def __init__(self, path: Path, lock: int, writer: LogWriter, readers: int) -> None:
        self._path = path
        self._lock = lock
        self._writer = writer
        self._pool = ThreadPoolExecutor(readers, "carrel-log-reader")
        self._checkpointer = Checkpointer(path, lambda: writer.commits)
        self._checkpointer.start()
        self._idle: list[tuple[int, sqlite3.Connection]] = []
        self._opened = 1  # counts the writer's sessions: readers of an earlier one may look at a file that is gone
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        options: SqliteOptions | None = None,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open or make the log at ``path``, whose folder must exist.

        Args:
            path: The database file; ``-wal``, ``-shm`` and ``.lock`` files lie beside it.
            options: How SQLite is used.
            retention: How much is kept.
            clock: Wall clock in seconds.

        Raises:
            StoreUnavailableError: The file cannot be used, is not an event log, or belongs to another process.
        """
        options, retention = options or SqliteOptions(), retention or Retention()
        max_entries = retention.max_entries
        lock = await asyncio.to_thread(_take_lock, path)
        log: Self | None = None

        def open_session() -> LogSession:
            connection = open_writer(path, options.synchronous)
            try:
                inode = path.stat().st_ino
                session = LogSession(connection, inode, max_users=options.max_users, max_entries=max_entries)
            except BaseException:
                connection.close()
                raise
            if log is not None:
                log._opened += 1
            return session

        try:
            session = await asyncio.to_thread(open_session)
        except (sqlite3.Error, OSError) as error:
            os.close(lock)
            raise lost(error) from error
        writer = LogWriter(
            open_session,
            Sweeper(retention),
            clock,
            max_queued_bytes=options.max_queued_bytes,
            sweep_interval_s=options.sweep_interval_s,
        )
        log = cls(path, lock, writer, options.readers)
        writer.start(session)
        return log

    @property
    def changes(self) -> None:
        """Nobody else writes to it."""
        return

    @property
    def commits(self) -> int:
        """Transactions of appends since the start."""
        return self._writer.commits

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        return self._writer.append(batches)

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        def job(connection: sqlite3.Connection) -> ReadResult:
            found = read_position(connection, user)
            if found is None:
                return ReadResult((), Position("", 0, 1), trimmed=False)
            uid, position = found
            start = max(after, position.oldest - 1)
            entries = read_entries(connection, uid, start, limit, max_bytes) if start < position.top else ()
            return ReadResult(entries, position, trimmed=start > after)

        return await self._read(job)

    async def position(self, user: str) -> Position:
        while (found := await self._read(lambda connection: read_position(connection, user))) is None:
            await self._writer.ensure_user(user)
        return found[1]

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        def job(connection: sqlite3.Connection) -> tuple[Position, str | None] | None:
            found = read_position(connection, user)
            if found is None:
                return None
            uid, position = found
            known = position.oldest <= point.offset <= position.top
            return position, entry_id_at(connection, uid, point.offset) if known else None

        found = await self._read(job)
        position, event_id = found if found is not None else (await self.position(user), None)
        return ResumeCheck(position, resume_reset(position, point, event_id))

    async def resolve_run(self, user: str, run_id: str) -> RunInfo | None:
        def job(connection: sqlite3.Connection) -> RunInfo | None:
            state = load_user(connection, user)
            if state is None:
                return None
            run = state.runs.get(run_id) or load_run(connection, state, run_id)
            return run.info() if run else None

        return await self._read(job)

    async def sweep(self) -> int:
        return await self._writer.sweep()

    async def probe(self) -> None:
        def job(session: LogSession) -> None:
            connection = session.connection
            if self._path.stat().st_ino != session.inode:
                raise sqlite3.OperationalError("the file has been removed or replaced")
            now = time.time_ns()
            # As much as a batch of events takes: a few bytes still fit where no batch does, and nobody would recover.
            connection.execute("UPDATE probe SET at_ms = ?, filler = randomblob(65536)", (now,))
            if connection.execute("SELECT at_ms FROM probe").fetchone() != (now,):
                raise sqlite3.OperationalError("what was written is not read back")

        await self._writer.call(job)
        await self._read(lambda connection: connection.execute("SELECT at_ms FROM probe").fetchone())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown, wait=True)
        while self._idle:
            self._idle.pop()[1].close()
        await asyncio.to_thread(self._checkpointer.close)
        await self._writer.close()
        os.close(self._lock)

    async def _read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailableError("the event log is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read_in_thread, job)

    def _read_in_thread(self, job: Callable[[sqlite3.Connection], T]) -> T:
        opened, connection = self._opened, None
        try:
            connection = self._take_idle(opened) or open_reader(self._path)
            connection.execute("BEGIN")  # one snapshot for everything that the job looks at
            result = job(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise lost(error) from error
            raise
        self._idle.append((opened, connection))
        return result

    def _take_idle(self, opened: int) -> sqlite3.Connection | None:
        while True:
            try:
                made, connection = self._idle.pop()
            except IndexError:
                return None
            if made == opened:
                return connection
            connection.close()


def _take_lock(path: Path) -> int:
    """Hold ``<path>.lock`` for as long as this process lives; the kernel lets go of it when the process dies."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise lost(error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise StoreUnavailableError(
            f"the event log {path} is in use by another process (pid {holder})",
            advice="stop that process, or give this one another file; two bridges cannot share a SQLite log",
        ) from error
    with contextlib.suppress(OSError):  # a full disk must not keep a log from being opened; the number is a courtesy
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
