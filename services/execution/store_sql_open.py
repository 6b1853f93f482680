"""Opening the run store on one machine: the folder, the one process that may use it, its schema."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from carrel.errors import CarrelError, StartupError, StoreUnavailableError
from services.execution.migrations import HEAD, current, upgrade
from services.execution.models import Micros
from services.execution.store_sealing import OPTION, PLAIN, Seals
from services.execution.store_sql import SqlRunStore, wall_clock
from services.execution.store_sql_database import SqliteDatabase, unavailable

__all__ = ["migrate_sqlite", "open_sqlite_store"]


async def open_sqlite_store(  # noqa: PLR0913 -- what the settings say, by name
    path: Path,
    *,
    migrate: bool,
    engine_timeout_s: float = 300.0,
    lease_s: float = 15.0,
    synchronous: str = "NORMAL",
    busy_timeout_s: float = 2.0,
    clock: Callable[[], Micros] = wall_clock,
    seals: Seals = PLAIN,
) -> SqlRunStore:
    """Open (and make, where there is none) the run store in a SQLite file.

    Args:
        path: The file; beside it lie ``<path>.lock``, held while the process lives, and ``<path>.owner``, the name
            under which processes on this file hold leases, one after the other.
        migrate: Bring an older schema up to date; else that is an error that says how.
        engine_timeout_s, lease_s: As ``SqlRunStore``.
        synchronous, busy_timeout_s: As ``SqliteDatabase``.
        seals: Seals what users and agents wrote.

    Raises:
        StartupError: Another process uses the file, the folder can't be written, or the schema does not fit.
    """
    lock, owner = await asyncio.to_thread(_claim, path)
    store: SqlRunStore | None = None
    try:
        await asyncio.to_thread(_check_schema, path, migrate=migrate, busy_timeout_s=busy_timeout_s)
        database = SqliteDatabase(path, synchronous=synchronous, busy_timeout_s=busy_timeout_s, options={OPTION: seals})
        store = _LockedStore(
            database, lock, owner=owner, engine_timeout_s=engine_timeout_s, lease_s=lease_s, clock=clock
        )
        await store.probe()
        await store.check_keys()
    except CarrelError as error:
        if store is not None:
            await store.close()
        lock.close()
        if isinstance(error, StartupError):
            raise
        raise StartupError(error.message, advice=error.advice, what=f"the run store {path}") from error
    return store


def migrate_sqlite(path: Path, revision: str = "head") -> str:
    """Bring the file's schema to a revision; the revision that it then is at. For ``carrel migrate``.

    Raises:
        StartupError: A process uses the file, or it can't be written.
    """
    lock, _ = _claim(path)
    try:
        with _connect(path, 5.0).begin() as connection:
            upgrade(connection, revision)
            return current(connection)
    except exc.DBAPIError as error:
        raise _failed(path, unavailable(error)) from error
    finally:
        lock.close()


class _LockedStore(SqlRunStore):
    """The store that lets go of its lock file last."""

    def __init__(self, database: SqliteDatabase, lock: IO[str], **options: Any) -> None:
        super().__init__(database, **options)
        self._lock = lock

    async def close(self) -> None:
        """See ``RunStore``."""
        await super().close()
        self._lock.close()


def _claim(path: Path) -> tuple[IO[str], str]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = Path(f"{path}.lock").open("a")  # noqa: SIM115 -- held until the store is closed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StartupError(
                f"another execution process uses the run store {path}",
                advice="end that process, or give this one a data folder of its own (CARREL_EXECUTION_DATA_DIR)",
                what=f"the run store {path}",
            ) from None
        return lock, _owner(Path(f"{path}.owner"))
    except OSError as error:
        raise StartupError(
            f"the data folder {path.parent} cannot be used: {os.strerror(error.errno or 0)}",
            advice="make it writable for this process, or set CARREL_EXECUTION_DATA_DIR to another folder",
            what=f"the folder {path.parent}",
        ) from error


def _owner(path: Path) -> str:
    if path.exists() and (kept := path.read_text().strip()):
        return kept
    owner = f"sqlite-{secrets.token_hex(8)}"
    path.write_text(owner + "\n")
    return owner


def _check_schema(path: Path, *, migrate: bool, busy_timeout_s: float) -> None:
    engine = _connect(path, busy_timeout_s)
    try:
        with engine.begin() as connection:
            found = current(connection)
            if found == HEAD:
                return
            if found > HEAD:
                raise StartupError(
                    f"the run store {path} was written by a newer version (schema {found}, this one knows {HEAD})",
                    advice="start the newer version",
                )
            if not migrate:
                raise StartupError(
                    f"the run store {path} has the schema {found or '(none)'}, this version needs {HEAD}",
                    advice="run `carrel migrate`",
                )
            upgrade(connection)
    except exc.DBAPIError as error:
        raise _failed(path, unavailable(error)) from error
    finally:
        engine.dispose()


def _connect(path: Path, busy_timeout_s: float) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": busy_timeout_s})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _failed(path: Path, error: StoreUnavailableError) -> StartupError:
    return StartupError(error.message, advice=error.advice, what=f"the run store {path}")
