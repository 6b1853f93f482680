"""What is left of a write of the run store that a fault of the disk ends at each of its statements: nothing."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from carrel.errors import StoreUnavailableError
from services.execution.models import JournalItem, RunRecord, RunState, ThreadStrategy
from services.execution.models_steps import Again, Checkpoint, Finish
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_database import SqliteDatabase
from services.execution.store_sql_open import open_sqlite_store
from services.execution.tables import METADATA
from tests.contract.run_support import ALICE, QUESTION, admission, success

Write = Callable[[SqlRunStore, RunRecord], Awaitable[object]]


class Disk:
    """Fails at the n-th statement of what is written from now on; 0 for a good one."""

    def __init__(self, engine: sa.Engine) -> None:
        self.fails_at = 0
        self.statements = 0
        sa.event.listen(engine, "before_cursor_execute", self._statement)

    def arm(self, at: int) -> None:
        self.fails_at, self.statements = at, 0

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            return
        self.statements += 1
        if self.statements == self.fails_at:
            raise exc.OperationalError(statement, {}, sqlite3.OperationalError("disk I/O error"))


def dump(path: Path) -> dict[str, list[Any]]:
    """Every row of every table."""
    connection = sqlite3.connect(path)
    try:
        return {
            table.name: sorted(connection.execute(f"SELECT * FROM {table.name}").fetchall(), key=repr)
            for table in METADATA.sorted_tables
        }
    finally:
        connection.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlRunStore]:
    opened = await open_sqlite_store(tmp_path / "runs.sqlite3", migrate=True)
    yield opened
    await opened.close()


async def running(store: SqlRunStore) -> RunRecord:
    """A run under way with a call kept, and two that wait behind it."""
    run = (await store.admit(admission("run-1", thread="t"))).run
    await store.save_journal(run.ref, 0, [JournalItem(1, "c1", "tool", "t", "h", b"1")])
    for n in (2, 3):
        await store.admit(admission(f"run-{n}", thread="t", strategy=ThreadStrategy.ENQUEUE))
    return run


async def waiting(store: SqlRunStore) -> RunRecord:
    """The same, waiting for a person."""
    step = await store.suspend((await running(store)).ref, QUESTION, 60)
    assert step is not None
    return step.run


async def answered(store: SqlRunStore) -> RunRecord:
    """The same, with the answer there."""
    await waiting(store)
    run = await store.provide_input(ALICE, "run-1", "inp-1", b"true")
    assert run is not None
    return run


async def free(store: SqlRunStore) -> RunRecord:
    """The first has ended, the second may begin."""
    run = await running(store)
    await store.finish(run.ref, success())
    return run


def message(strategy: ThreadStrategy, **changes: Any) -> Write:
    asked = admission("run-9", thread="t", strategy=strategy, rate_per_minute=9.0, rate_burst=3, **changes)
    return lambda store, _: store.admit(asked)


WRITES: dict[str, tuple[Callable[[SqlRunStore], Awaitable[RunRecord]], Write]] = {
    "enqueue": (running, message(ThreadStrategy.ENQUEUE, client_ref="ref")),
    "interrupt": (running, message(ThreadStrategy.INTERRUPT, client_ref="ref")),
    "rollback": (running, message(ThreadStrategy.ROLLBACK)),
    "rollback of one that waits": (waiting, message(ThreadStrategy.ROLLBACK)),
    "checkpoint": (running, lambda store, run: store.checkpoint(run.ref, Checkpoint(0, b"{}", "data", ("more",)))),
    "begin_attempt": (running, lambda store, run: store.begin_attempt(run.ref, 0, Again.WORKER_LOST, lost=True)),
    "suspend": (running, lambda store, run: store.suspend(run.ref, QUESTION, 60)),
    "provide_input": (waiting, lambda store, _: store.provide_input(ALICE, "run-1", "inp-1", b"true")),
    "promote of a new run": (free, lambda store, _: store.promote(10)),
    "promote of one that goes on": (answered, lambda store, _: store.promote(10)),
    "finish": (running, lambda store, run: store.finish(run.ref, success())),
    "cancel of one that waits": (waiting, lambda store, run: store.finish(run.ref, Finish(RunState.CANCELLED))),
    "close_run": (free, lambda store, run: store.close_run(run.ref)),
    "use_budget": (running, lambda store, run: store.use_budget(run.ref, 5, 10, 1, 1e9)),
    "take_over": (running, lambda store, _: store.take_over()),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_write_that_fails_at_any_of_its_statements_has_done_nothing(
    name: str, store: SqlRunStore, tmp_path: Path
) -> None:
    prepare, write = WRITES[name]
    run = await prepare(store)
    database = store._database.inner
    assert isinstance(database, SqliteDatabase)
    disk = Disk(database.writing_engine)
    path = tmp_path / "runs.sqlite3"
    before = dump(path)
    for at in range(1, 100):
        disk.arm(at)
        try:
            await write(store, run)
        except StoreUnavailableError:
            assert dump(path) == before, f"statement {at} of {name}"
            continue
        break
    assert disk.statements == at - 1 > 0
    assert dump(path) != before
