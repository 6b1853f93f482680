"""Access to a PostgreSQL database: a bounded number of connections, one transaction for each operation, READ COMMITTED.

No table is known here. Operations are the same plain functions as on SQLite; what they decide upon they have locked
(``SELECT … FOR UPDATE``) before they read it. Writes are not grouped: within a network transaction a savepoint costs
the two trips that a transaction of one's own does, and PostgreSQL itself syncs what commits together once.

A transaction whose end is in doubt, since the connection broke in the middle of COMMIT, is asked after by its number
(``pg_xact_status``): the caller hears what became of it, and nothing is done twice. A server that was killed gives the
numbers of transactions that it has lost to the next ones; its last checkpoint tells whether this is such a number.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from carrel.errors import CarrelError, QueueFullError, StoreUnavailableError
from services.execution.store_sql_database import Connector, Operation, internal
from services.execution.store_sql_postgres_errors import Meaning, is_away, meaning_of, postgres_unavailable

__all__ = ["PostgresDatabase"]

_T = TypeVar("_T")

_MAX_QUEUED: Final = 10_000
_TRIES: Final = 5
# After an attempt to connect that failed, others need not wait for their own to fail.
_AWAY_S: Final = 0.1
# A connection that nobody needed for so long is not trusted: what lies between may have forgotten it without a word.
_IDLE_S: Final = 60.0
_DOUBT_S: Final = 0.1
_BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_XID: Final = "SELECT pg_current_xact_id_if_assigned()::text AS xid, clock_timestamp() AS at"
_STATUS: Final = "SELECT pg_xact_status($1::text::xid8)"
# A recovery ends with a checkpoint that has the number of the next transaction. If there was one since the transaction
# was seen at work, and that number is not beyond the transaction's, then its bearer is another one. Statistics begin
# anew with a recovery, whether or not the postmaster went, too; a checkpoint's own time is in whole seconds.
_GIVEN_AGAIN: Final = (
    "SELECT (pg_postmaster_start_time() > $2 OR (SELECT stats_reset FROM pg_stat_bgwriter) > $2)"
    " AND (split_part(next_xid, ':', 1)::bigint << 32) + split_part(next_xid, ':', 2)::bigint <= $1::text::bigint"
    " FROM pg_control_checkpoint()"
)
_END_IT: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_xid::text::bigint ="
    " ($2::text::bigint & 4294967295)"
)


@dataclass(slots=True)
class _Slot:
    """A connection that is kept: SQLAlchemy's, and the driver's below it."""

    connection: AsyncConnection
    raw: Any
    fresh: bool = True
    used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Doubted:
    """A transaction of which it is not known whether it was committed; ``at`` it was at work, by the server's clock."""

    xid: str
    at: datetime
    pid: int


class _InDoubtError(Exception):
    """Its connection has not noticed yet that nobody is there any more."""


class PostgresDatabase:
    """See ``Database`` and the module.

    Args:
        connect: Makes a connection of the driver's, with its timeouts.
        writers, readers: How many connections each may use at once. A user's writes come one after the other, so that
            one user's flood holds one of them.
        options: Options that operations find at their connection (``get_execution_options``).
    """

    def __init__(
        self,
        connect: Connector,
        *,
        writers: int = 6,
        readers: int = 4,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._connect = connect
        # Transactions are ours to begin and end: the driver's own would begin them later and cost the same.
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            connect_args={"prepared_statement_cache_size": 300},
            execution_options=dict(options or {}),
        )
        self._writers = asyncio.Semaphore(writers)
        self._readers = asyncio.Semaphore(readers)
        self._idle: list[_Slot] = []
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self._away_until = 0.0
        self._away: StoreUnavailableError | None = None
        self._closed = False

    @property
    def engine(self) -> sa.Engine:
        """For whoever listens to its events (telemetry, tests)."""
        return self._engine.sync_engine

    async def write(self, operation: Operation[_T], key: str = "") -> _T:
        """See ``Database``."""
        return await self._in_task(self._write(operation, key))

    async def read(self, operation: Operation[_T]) -> _T:
        """See ``Database``."""
        return await self._in_task(self._read(operation))

    async def close(self) -> None:
        """See ``Database``."""
        if self._closed:
            return
        self._closed = True
        while self._work:
            await asyncio.wait(self._work)
        while self._idle:
            await self._drop(self._idle.pop())
        await self._engine.dispose()

    # One operation

    async def _in_task(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it whether or not the caller waits: one that goes away must not cost a connection either."""
        if self._closed or len(self._work) >= _MAX_QUEUED:
            work.close()
            if self._closed:
                raise StoreUnavailableError("the run store is closed")
            raise QueueFullError("too much waits for the run store", limit="run_store_queue", limit_value=_MAX_QUEUED)
        task = asyncio.create_task(work, name="run-store")
        self._work.add(task)
        task.add_done_callback(self._worked)
        return await asyncio.shield(task)

    async def _write(self, operation: Operation[_T], key: str) -> _T:
        async with self._turn(key), self._writers:
            return await self._insist(lambda slot: self._transact(slot, operation))

    async def _read(self, operation: Operation[_T]) -> _T:
        async with self._readers:
            return await self._insist(lambda slot: self._look(slot, operation))

    async def _insist(self, work: Callable[[_Slot], Awaitable[_T]]) -> _T:
        """Do something over a connection, and again while that can help and nothing of it is in effect."""
        for tried in range(1, _TRIES + 1):
            slot = await self._take()
            kept = not slot.fresh
            try:
                result = await work(slot)
            except CarrelError:
                self._give_back(slot)
                raise
            except (exc.DBAPIError, OSError, TimeoutError) as error:
                await self._drop(slot)
                meaning = meaning_of(error)
                if meaning is Meaning.FAULT:
                    raise internal(error) from error
                # A kept connection may have broken long ago, with all the others; a fresh one says how things are.
                again = meaning is Meaning.AGAIN or (meaning is Meaning.LOST and kept)
                if not again or tried == _TRIES:
                    if isinstance(error, exc.IntegrityError):  # again and again: a fault of ours
                        raise internal(error) from error
                    raise postgres_unavailable(error) from error
                if meaning is Meaning.LOST:
                    await self._drop_idle()
                else:
                    await asyncio.sleep(random.uniform(0.0, 0.01 * 2**tried))  # noqa: S311 -- guards nothing
            except BaseException as error:
                # Cancelled in the middle of an exchange, or an operation of ours that failed.
                await asyncio.shield(self._drop(slot))
                if isinstance(error, Exception):
                    raise internal(error) from error
                raise
            else:
                self._give_back(slot)
                return result
        raise AssertionError("the last try returns or raises")

    async def _transact(self, slot: _Slot, operation: Operation[_T]) -> _T:
        raw = slot.raw
        await _of_driver(raw.execute("BEGIN"))
        try:
            result = await slot.connection.run_sync(_apply, operation)
        except CarrelError:
            await _of_driver(raw.execute("ROLLBACK"))
            raise
        seen = await _of_driver(raw.fetchrow(_XID))
        pid = raw.get_server_pid()
        try:
            await _of_driver(raw.execute("COMMIT"))
        except (exc.DBAPIError, OSError, TimeoutError) as error:
            if seen["xid"] is None or meaning_of(error) in (Meaning.AGAIN, Meaning.FAULT):
                raise
            raw.terminate()
            if not await self._committed(_Doubted(seen["xid"], seen["at"], pid)):
                raise
        return result

    async def _look(self, slot: _Slot, operation: Operation[_T]) -> _T:
        await _of_driver(slot.raw.execute(_BEGIN_READ))
        try:
            result = await slot.connection.run_sync(_apply, operation)
        except CarrelError:
            await _of_driver(slot.raw.execute("ROLLBACK"))
            raise
        await _of_driver(slot.raw.execute("COMMIT"))
        return result

    async def _committed(self, doubted: _Doubted) -> bool:
        """What became of a transaction whose COMMIT got no answer; however long it takes until it can be found out.

        Raises:
            StoreUnavailableError: This process ends before.
        """
        while not self._closed:
            with contextlib.suppress(_InDoubtError, exc.DBAPIError, OSError, TimeoutError):
                return await self._ask_after(doubted)
            await asyncio.sleep(_DOUBT_S)
        raise StoreUnavailableError(
            "the run store went away in the middle of a commit, and whether it took place could not be found out",
            advice="ask again with the same client_ref: a request that got through is answered with its run",
            retry_after_s=1.0,
        )

    async def _ask_after(self, doubted: _Doubted) -> bool:
        raw = await _of_driver(self._connect())
        try:
            try:
                status = await _of_driver(raw.fetchval(_STATUS, doubted.xid))
            except exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", "") == "22023":
                    return False  # of the future: this server has lost it, or never had it
                raise
            if status == "in progress":
                await _of_driver(raw.execute("SET statement_timeout = 2000"))
                await _of_driver(raw.fetchval(_END_IT, doubted.pid, doubted.xid))
                raise _InDoubtError
            return status == "committed" and not await _given_again(raw, doubted)
        finally:
            raw.terminate()

    # Connections

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncIterator[None]:
        if not key:
            yield
            return
        lock, users = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[key]
            if users == 1:
                del self._turns[key]
            else:
                self._turns[key] = (lock, users - 1)

    async def _take(self) -> _Slot:
        loop = asyncio.get_running_loop()
        while self._idle:
            slot = self._idle.pop()
            if not slot.raw.is_closed() and loop.time() < slot.used_at + _IDLE_S:
                slot.fresh = False
                return slot
            await self._drop(slot)
        if self._away is not None and loop.time() < self._away_until:
            raise StoreUnavailableError(self._away.message, advice=self._away.advice, retry_after_s=1.0)
        try:
            connection = await self._engine.connect()
        except CarrelError:
            raise
        except Exception as error:
            if is_away(error):
                self._away, self._away_until = postgres_unavailable(error), loop.time() + _AWAY_S
            elif not isinstance(error, exc.DBAPIError):
                raise internal(error) from error
            raise postgres_unavailable(error) from error
        self._away = None
        held = await connection.get_raw_connection()
        return _Slot(connection, held.driver_connection)

    def _give_back(self, slot: _Slot) -> None:
        slot.used_at = asyncio.get_running_loop().time()
        self._idle.append(slot)

    async def _drop(self, slot: _Slot) -> None:
        # After an error nobody knows what state the connection is in; a polite end would wait for an answer.
        slot.raw.terminate()
        with contextlib.suppress(exc.SQLAlchemyError, OSError, TimeoutError):
            await slot.connection.invalidate()
            await slot.connection.close()

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for slot in idle:
            await self._drop(slot)

    def _worked(self, work: asyncio.Task[Any]) -> None:
        self._work.discard(work)
        if not work.cancelled():
            _ = work.exception()  # its caller's, who may have gone


def _apply(connection: sa.Connection, operation: Operation[_T]) -> _T:
    # To SQLAlchemy a transaction that is none: it forgets what it knows of the one before.
    with connection.begin():
        return operation(connection)


async def _given_again(raw: Any, doubted: _Doubted) -> bool:
    """Whether the server has lost the transaction in a crash, and another one bears its number."""
    try:
        return bool(await _of_driver(raw.fetchval(_GIVEN_AGAIN, doubted.xid, doubted.at)))
    except exc.DBAPIError as error:
        if not getattr(error.orig, "sqlstate", "").startswith("42"):
            raise
        return False  # a server of another make, that does not tell of its checkpoints


async def _of_driver(work: Awaitable[Any]) -> Any:
    """What the driver itself raises, as the one kind of error that everything here looks for."""
    try:
        return await work
    except (OSError, TimeoutError, asyncio.CancelledError):
        raise
    except Exception as error:
        if type(error).__module__.startswith("asyncpg"):
            raise exc.DBAPIError("", None, error) from error
        raise
