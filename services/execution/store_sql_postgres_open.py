"""Opening the run store on PostgreSQL, which several processes may do at once: connections, schema, owner."""

from __future__ import annotations

import os
import secrets
import socket
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy import exc

from carrel.errors import CarrelError, StartupError, StoreUnavailableError
from services.execution.config_store import PostgresAddress, postgres_name
from services.execution.migrations import HEAD, current, upgrade
from services.execution.models import Micros
from services.execution.store_sealing import OPTION, PLAIN, Seals
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_clock import DatabaseClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.execution.store_sql_database import Connector
    from services.execution.store_sql_postgres import PostgresDatabase

__all__ = ["SharedRunStore", "connector", "migrate_postgres", "open_postgres_store"]

_EXTRA: Final = "pip install 'carrel[postgres]'"
# Any number that nobody else uses on this database: who has it may change the schema.
_LOCK: Final = "SELECT pg_advisory_xact_lock(6513010, 2)"
_LOCK_WAIT: Final = "SET LOCAL lock_timeout = '10s'"


async def open_postgres_store(
    address: PostgresAddress,
    *,
    migrate: bool,
    engine_timeout_s: float = 300.0,
    lease_s: float = 15.0,
    clock: Callable[[], Micros] | None = None,
    seals: Seals = PLAIN,
) -> SharedRunStore:
    """Open the run store in a PostgreSQL database.

    Args:
        address: The database, which exists; its tables are made where there are none and ``migrate`` allows it.
        migrate: Bring an older schema up to date; else that is an error that says how.
        engine_timeout_s, lease_s: As ``SqlRunStore``.
        clock: For tests; else the database's.
        seals: Seals what users and agents wrote.

    Raises:
        StartupError: The database can't be reached or entered, the schema does not fit, or the driver is missing.
    """
    database = _database(address, seals)
    try:
        await _check_schema(address, migrate=migrate)
        shared_clock = DatabaseClock()
        await shared_clock.set_by(database)
        store = SharedRunStore(
            database,
            shared_clock,
            owner=_owner(),
            engine_timeout_s=engine_timeout_s,
            lease_s=lease_s,
            clock=clock or shared_clock,
        )
        await store.probe()
        await store.check_keys()
    except CarrelError as error:
        await database.close()
        raise _failed(address, error) from error
    return store


async def migrate_postgres(address: PostgresAddress, revision: str = "head") -> str:
    """Bring the database's schema to a revision; the revision that it then is at. For ``carrel migrate``.

    Several at once come one after the other, and all but the first find nothing to do.

    Raises:
        StartupError: It can't be reached, entered or written, or it was written by a newer version.
    """
    try:
        return await _run_alone(address, partial(_migrate, revision=revision, name=postgres_name(address.url)))
    except CarrelError as error:
        raise _failed(address, error) from error


class SharedRunStore(SqlRunStore):
    """The store of several processes at once, which sets its clock by the database's."""

    shared = True

    def __init__(self, database: PostgresDatabase, shared_clock: DatabaseClock, **options: Any) -> None:
        super().__init__(database, **options)
        self._postgres = database
        self._shared_clock = shared_clock

    @property
    def database(self) -> PostgresDatabase:
        """Where the tables are."""
        return self._postgres

    @property
    def owner(self) -> str:
        """The name that this process holds runs under; another at each start."""
        return self._owner

    async def renew_leases(self) -> None:
        """See ``RunStore``."""
        await super().renew_leases()
        await self._shared_clock.set_by(self.database)


def connector(address: PostgresAddress, *, name: str = "carrel-execution", patient: bool = False) -> Connector:
    """What makes a connection of the driver's.

    Args:
        address: Where to, and how long a connection, a statement, a lock and a pause within a transaction may take.
        name: What the database's own views show.
        patient: Without bounds for statements and locks, for migrations.

    Raises:
        StartupError: The driver is missing.
    """
    # SQLAlchemy runs plain functions over an asynchronous driver by means of greenlet.
    missing = [module for module in ("asyncpg", "greenlet") if find_spec(module) is None]
    if missing:
        raise StartupError(
            f"the run store on PostgreSQL needs {' and '.join(missing)}, not installed here", advice=_EXTRA
        )
    import asyncpg

    settings = {
        "application_name": name,
        "idle_in_transaction_session_timeout": _ms(address.idle_s),
        "statement_timeout": "0" if patient else _ms(address.statement_s),
        "lock_timeout": "0" if patient else _ms(address.lock_s),
        # What an abrupt end of the other machine leaves open would hold its locks for hours.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "timezone": "UTC",
        # Compiling a statement takes longer than running any of these.
        "jit": "off",
    }

    def connect(**_options: Any) -> Any:
        return asyncpg.connect(
            address.url,
            # Read each time: it may have been exchanged.
            password=_password(address.password_file),
            timeout=address.connect_s,
            # The server ends a statement in time; a server, or a network, that says nothing more does not.
            command_timeout=None if patient else address.statement_s + 5,
            server_settings=settings,
            statement_cache_size=0 if patient else 100,
        )

    return connect


def _database(address: PostgresAddress, seals: Seals = PLAIN) -> PostgresDatabase:
    connect = connector(address)
    from services.execution.store_sql_postgres import PostgresDatabase

    readers = max(1, address.connections * 2 // 5)
    return PostgresDatabase(
        connect, writers=max(1, address.connections - readers), readers=readers, options={OPTION: seals}
    )


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise StoreUnavailableError(
            f"the password file {file} can't be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}",
            advice="correct CARREL_EXECUTION_STORE_PASSWORD_FILE, or make the file readable for this process",
            retry_after_s=1.0,
        ) from error


def _owner() -> str:
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(6)}"


async def _check_schema(address: PostgresAddress, *, migrate: bool) -> None:
    found = await _run_alone(address, current, alone=False)
    if found == HEAD:
        return
    name = postgres_name(address.url)
    if found < HEAD and not migrate:
        raise StartupError(
            f"the run store {name} has the schema {found or '(none)'}, this version needs {HEAD}",
            advice="run `carrel migrate`",
        )
    await _run_alone(address, partial(_migrate, revision="head", name=name))


def _migrate(connection: sa.Connection, *, revision: str, name: str) -> str:
    found = current(connection)  # another may have done it while this one waited for the lock
    if found > HEAD:
        raise StartupError(
            f"the run store {name} was written by a newer version (schema {found}, this one knows {HEAD})",
            advice="start the newer version",
        )
    if found != HEAD or revision != "head":
        upgrade(connection, revision)
    return current(connection)


async def _run_alone(address: PostgresAddress, work: Callable[[sa.Connection], str], *, alone: bool = True) -> str:
    """Do something in one transaction, ``alone`` only while no other process does so."""
    connect = connector(address, name="carrel-migrate", patient=True)
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from services.execution.store_sql_postgres_errors import postgres_unavailable

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, poolclass=NullPool, hide_parameters=True
    )
    try:
        async with engine.begin() as connection:
            if alone:
                await connection.exec_driver_sql(_LOCK)
                # Whoever holds a table for longer has something going on that a change of schema should not cut into.
                await connection.exec_driver_sql(_LOCK_WAIT)
            return await connection.run_sync(work)
    except CarrelError:
        raise
    except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
        raise postgres_unavailable(error) from error
    except Exception as error:
        if type(error).__module__.startswith("asyncpg"):  # while connecting
            raise postgres_unavailable(error) from error
        raise
    finally:
        await engine.dispose()


def _failed(address: PostgresAddress, error: CarrelError) -> StartupError:
    what = f"the run store {postgres_name(address.url)}"
    if isinstance(error, StartupError):
        return error
    advice = error.advice if isinstance(error, StoreUnavailableError) else "look at the log"
    return StartupError(error.message, advice=advice, what=what)


def _ms(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
