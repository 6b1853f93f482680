"""Access to a SQLite file: one writer that commits in groups, readers beside it. No table is known here.

An operation is a plain function of a SQLAlchemy ``Connection``. On SQLite it runs in a thread of ours over the ordinary
driver: with the asyncio driver each statement is a trip to a thread and back, 1.5 ms for an admission instead of
0.25 ms (measured). For PostgreSQL (``store_sql_postgres``) the same functions run through ``AsyncConnection.run_sync``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from carrel.errors import CarrelError, InternalError, QueueFullError, StoreUnavailableError

__all__ = ["Connector", "Database", "Operation", "SqliteDatabase", "internal", "unavailable"]

_T = TypeVar("_T")
Operation = Callable[[sa.Connection], _T]
# Makes a connection of an asynchronous driver's.
Connector = Callable[[], Awaitable[Any]]

_MAX_GROUP: Final = 128
_MAX_QUEUED: Final = 10_000
_SAVE, _UNDO, _KEEP = "SAVEPOINT one", "ROLLBACK TO SAVEPOINT one", "RELEASE SAVEPOINT one"


def unavailable(error: BaseException) -> StoreUnavailableError:
    """What the database said, as an error whose advice fits it."""
    text = str(getattr(error, "orig", None) or error)
    low = text.lower()
    if "full" in low:
        advice = "free space on the disk that holds the run store"
    elif "readonly" in low or "read-only" in low or "unable to open" in low:
        advice = "make the folder and file of the run store writable for this process"
    elif "locked" in low or "busy" in low:
        advice = "end what else holds the run store's file open"
    else:
        advice = "look at the database's own messages"
    return StoreUnavailableError(f"the run store cannot be used: {text[:200]}", advice=advice, retry_after_s=1.0)


class Database(Protocol):
    """What a store needs of a database."""

    async def write(self, operation: Operation[_T], key: str = "") -> _T:
        """Run one operation in a transaction, durable when this returns; all of it is in effect, or none.

        It goes on, whether or not the caller waits for it. It may run more than once, in transactions that came to
        nothing; so it must not do anything but look at and change the database.

        Args:
            operation: What to do.
            key: Those of one key come one after the other. The empty one is nobody's.

        Raises:
            StoreUnavailableError: Nothing of the operation is in effect.
            QueueFullError: Too much is waiting to be written.
        """
        ...

    async def read(self, operation: Operation[_T]) -> _T:
        """Run one operation over a snapshot. Never waits for those who write."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then let go. Idempotent."""
        ...


class SqliteDatabase:
    """A SQLite file: WAL, one writing connection, ``readers`` reading ones, each in a thread of its own.

    Args:
        path: The file; its folder exists.
        synchronous: ``NORMAL`` survives the death of every process, ``FULL`` the machine's too (an fsync per commit).
        busy_timeout_s: How long to wait for whoever else writes.
        options: Options that operations find at their connection (``get_execution_options``).
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str = "NORMAL",
        busy_timeout_s: float = 2.0,
        readers: int = 2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = dict(options or {})
        self._writing = self._engine(path, "BEGIN IMMEDIATE", synchronous, busy_timeout_s)
        self._reading = self._engine(path, "BEGIN", synchronous, busy_timeout_s)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="run-store-writer")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="run-store-reader")
        self._write_connection: sa.Connection | None = None
        self._read_connections = threading.local()
        self._open_readers: list[sa.Connection] = []
        self._queue: deque[tuple[Operation[Any], asyncio.Future[Any]]] = deque()
        self._group: asyncio.Task[None] | None = None
        self._closed = False

    def _engine(self, path: Path, begin: str, synchronous: str, busy_timeout_s: float) -> sa.Engine:
        # A connection stays with the thread that made it, but close() may come from another.
        engine = sa.create_engine(
            f"sqlite:///{path}",
            poolclass=NullPool,
            connect_args={"timeout": busy_timeout_s, "check_same_thread": False, "cached_statements": 256},
            execution_options=self._options,
        )

        @sa.event.listens_for(engine, "connect")
        def _connected(connection: Any, _record: Any) -> None:
            # The driver must not begin transactions of its own: it would begin them too late and as deferred ones.
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")

        @sa.event.listens_for(engine, "begin")
        def _begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    @property
    def writing_engine(self) -> sa.Engine:
        """For whoever listens to its events (telemetry, tests)."""
        return self._writing

    async def write(self, operation: Operation[_T], key: str = "") -> _T:
        """See ``Database``. Everything that arrives while a transaction is under way shares the next one."""
        if self._closed:
            raise StoreUnavailableError("the run store is closed")
        if len(self._queue) >= _MAX_QUEUED:
            raise QueueFullError(
                "too many writes wait for the run store", limit="run_store_queue", limit_value=_MAX_QUEUED
            )
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._queue.append((operation, future))
        if self._group is None:
            self._group = asyncio.create_task(self._commit_groups(), name="run-store-writer")
        return await future

    async def read(self, operation: Operation[_T]) -> _T:
        """See ``Database``."""
        if self._closed:
            raise StoreUnavailableError("the run store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, operation)

    async def close(self) -> None:
        """See ``Database``."""
        if self._closed:
            return
        self._closed = True
        while self._group is not None:
            await asyncio.wait([self._group])
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._drop_writer)
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._open_readers:
            connection.close()
        self._open_readers.clear()
        self._writing.dispose()
        self._reading.dispose()

    async def _commit_groups(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                group = [self._queue.popleft() for _ in range(min(len(self._queue), _MAX_GROUP))]
                results = await loop.run_in_executor(self._writer, self._commit, [item[0] for item in group])
                for (_, future), result in zip(group, results, strict=True):
                    if future.done():  # its caller has gone
                        continue
                    if isinstance(result, _Failed):
                        future.set_exception(result.error)
                    else:
                        future.set_result(result)
                # Whoever has waited for this group and has more to write gets into the next one.
                await asyncio.sleep(0)
        finally:
            self._group = None

    # In the writer's thread

    def _commit(self, operations: list[Operation[Any]]) -> list[Any]:
        try:
            if self._write_connection is None:
                self._write_connection = self._writing.connect()
            with self._write_connection.begin():
                if len(operations) == 1:
                    return [operations[0](self._write_connection)]
                return [self._apply(self._write_connection, operation) for operation in operations]
        except CarrelError as error:  # only ever of a group of one: its transaction was rolled back
            return [_Failed(error)]
        except exc.IntegrityError as error:  # a fault of ours: trying again would change nothing
            return [_Failed(internal(error)) for _ in operations]
        except exc.DBAPIError as error:
            self._drop_writer()
            return [_Failed(unavailable(error)) for _ in operations]
        except Exception as error:  # noqa: BLE001 -- handed to whoever asked
            self._drop_writer()
            return [_Failed(internal(error)) for _ in operations]

    @staticmethod
    def _apply(connection: sa.Connection, operation: Operation[Any]) -> Any:
        # As plain text: SQLAlchemy's own savepoints are compiled anew each time, a fifth of the writer's work.
        connection.exec_driver_sql(_SAVE)
        try:
            result = operation(connection)
            connection.exec_driver_sql(_KEEP)
        except exc.OperationalError:
            # The whole transaction is lost. A full disk has undone it already, so the savepoint can't be asked.
            raise
        except CarrelError as error:
            failed = _Failed(error)
        except Exception as error:  # noqa: BLE001 -- handed to whoever asked; the others of the group go on
            failed = _Failed(internal(error))
        else:
            return result
        connection.exec_driver_sql(_UNDO)
        connection.exec_driver_sql(_KEEP)
        return failed

    def _drop_writer(self) -> None:
        # After an error nobody knows what state the connection is in.
        connection, self._write_connection = self._write_connection, None
        if connection is not None:
            with contextlib.suppress(exc.DBAPIError):
                connection.close()

    # In a reader's thread

    def _read(self, operation: Operation[_T]) -> _T:
        connection: sa.Connection | None = getattr(self._read_connections, "it", None)
        try:
            if connection is None:
                connection = self._read_connections.it = self._reading.connect()
                self._open_readers.append(connection)
            with connection.begin():
                return operation(connection)
        except exc.DBAPIError as error:
            if connection is not None:
                self._read_connections.it = None
                self._open_readers.remove(connection)
                with contextlib.suppress(exc.DBAPIError):
                    connection.close()
            raise unavailable(error) from error


class _Failed:
    """An operation's error on its way to its own caller."""

    __slots__ = ("error",)

    def __init__(self, error: CarrelError) -> None:
        self.error = error


def internal(error: Exception) -> InternalError:
    """A fault of ours: what went wrong is its cause, for the log."""
    failure = InternalError(f"an operation of the run store failed: {type(error).__name__}")
    failure.__cause__ = error
    return failure
