"""The run store under test, over every implementation that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servicekit.sealing_keys import SealingKeys, add_key
from services.execution.config_store import PostgresAddress
from services.execution.store import RunStore
from services.execution.store_sealing import KeySeals
from services.execution.store_sql_open import open_sqlite_store
from services.execution.store_sql_postgres_open import migrate_postgres
from tests.contract.run_backends import Backend, PostgresBackend, SqliteBackend
from tests.contract.run_support import Clock
from tests.support.postgres import PostgresServer, run_apart


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until told."""
    return Clock()


@pytest.fixture(scope="session")
def run_tables(postgres: PostgresServer) -> str:
    """A database with the store's tables, for all tests one after the other."""

    async def make() -> str:
        name = await postgres.create()
        await migrate_postgres(PostgresAddress(postgres.url(name)))
        return name

    return run_apart(make())


@pytest.fixture(params=["sqlite", "sealed", pytest.param("postgres", marks=pytest.mark.container)])
def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Backend:
    """Empty tables for each test."""
    if request.param == "sealed":
        keys = tmp_path / "encryption.json"
        add_key(keys)
        return SqliteBackend(tmp_path / "runs.sqlite3", clock, KeySeals(SealingKeys(keys)))
    if request.param == "sqlite":
        return SqliteBackend(tmp_path / "runs.sqlite3", clock)
    tables = PostgresBackend(request.getfixturevalue("postgres"), request.getfixturevalue("run_tables"), clock)
    run_apart(tables.clean())
    return tables


@pytest.fixture
async def store(backend: Backend, clock: Clock) -> AsyncIterator[RunStore]:
    """A run store of its own for each test."""
    if isinstance(backend, SqliteBackend):
        opened: RunStore = await open_sqlite_store(
            backend.path, migrate=True, engine_timeout_s=300, clock=clock, seals=backend.seals
        )
    else:
        opened = await backend.process("contract")
    yield opened
    await opened.close()
