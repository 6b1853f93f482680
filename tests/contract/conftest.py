"""The run store under test, over every implementation that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.execution.store import RunStore
from services.execution.store_sql_open import open_sqlite_store
from tests.contract.run_support import Clock


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until told."""
    return Clock()


@pytest.fixture(params=["sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[RunStore]:
    """A run store of its own for each test."""
    opened = await open_sqlite_store(tmp_path / "runs.sqlite3", migrate=True, engine_timeout_s=300, clock=clock)
    yield opened
    await opened.close()
