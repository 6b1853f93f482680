"""Where the run store under test keeps its tables: a SQLite file, or a database of a real PostgreSQL server.

``process`` gives the store as one process has it; several at once are replicas over the same tables.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from services.execution.config_store import PostgresAddress
from services.execution.store_sealing import OPTION, PLAIN, Seals
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_database import SqliteDatabase
from services.execution.store_sql_open import migrate_sqlite
from services.execution.store_sql_postgres_open import connector
from services.execution.tables import METADATA
from tests.contract.run_support import Clock
from tests.support.postgres import PostgresServer

CLEAN = "; ".join(f"DELETE FROM {table.name}" for table in METADATA.sorted_tables if table.name != "schema_revision")


class Backend(Protocol):
    """Tables that stores may be opened over. The option ``seals`` seals what users and agents write."""

    async def process(self, owner: str, **options: Any) -> SqlRunStore:
        """The store as a process of this name has it; the caller closes it."""
        ...


@cache
def _empty_tables() -> bytes:
    """A SQLite file with the store's tables, which takes five times as long to make as to copy."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "runs.sqlite3"
        migrate_sqlite(path)
        return path.read_bytes()


class SqliteBackend:
    """A file with empty tables."""

    def __init__(self, path: Path, clock: Clock, seals: Seals = PLAIN) -> None:
        self.path = path
        self.seals = seals
        self._clock = clock
        path.write_bytes(_empty_tables())

    async def process(self, owner: str, **options: Any) -> SqlRunStore:
        """See ``Backend``."""
        database = SqliteDatabase(self.path, options={OPTION: options.pop("seals", self.seals)})
        return SqlRunStore(database, owner=owner, **{"clock": self._clock, **options})


class PostgresBackend:
    """A database of a server, whose rows of former tests are gone."""

    def __init__(self, server: PostgresServer, database: str, clock: Clock) -> None:
        self.address = PostgresAddress(server.url(database))
        self._server, self._database = server, database
        self._clock = clock

    async def clean(self) -> None:
        """Delete all rows: of so few that is quicker than to truncate, or make, a database."""
        import asyncpg

        connection = await asyncpg.connect(self._server.url(self._database), timeout=10)
        try:
            await connection.execute(CLEAN)
        finally:
            await connection.close(timeout=5)

    async def process(self, owner: str, **options: Any) -> SqlRunStore:
        """See ``Backend``."""
        # Loads what is there only with the extra `postgres`.
        from services.execution.store_sql_postgres import PostgresDatabase

        database = PostgresDatabase(connector(self.address), options={OPTION: options.pop("seals", PLAIN)})
        return SqlRunStore(database, owner=owner, **{"clock": self._clock, **options})
