"""The database underneath: group commit, locked and full files, opening, schema."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from carrel.errors import InternalError, InvalidRequestError, StartupError, StoreUnavailableError
from services.execution import migrations
from services.execution.models import ThreadStrategy
from services.execution.store_sealing import PLAIN
from services.execution.store_sql_database import SqliteDatabase
from services.execution.store_sql_open import migrate_sqlite, open_sqlite_store
from services.execution.store_sql_rows import identity_json
from services.execution.tables import METADATA
from tests.contract.run_support import ALICE, QUESTION, admission, success


def insert(value: int) -> Any:
    def operation(connection: sa.Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (value,))
        return value

    return operation


def refuse(connection: sa.Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (-1)")
    raise InvalidRequestError("no")


def fault(connection: sa.Connection) -> None:
    connection.exec_driver_sql("INSERT INTO t VALUES (-2)")
    raise KeyError("a fault of ours")


def values(connection: sa.Connection) -> list[int]:
    return list(connection.exec_driver_sql("SELECT v FROM t ORDER BY v").scalars())


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "a.sqlite3", busy_timeout_s=0.1)
    await opened.write(lambda c: c.exec_driver_sql("CREATE TABLE t (v INTEGER PRIMARY KEY)") and None)
    yield opened
    await opened.close()


async def test_of_a_group_only_what_is_refused_or_faulty_is_undone(database: SqliteDatabase) -> None:
    operations = [insert(1), refuse, insert(2), fault, insert(2), insert(3)]
    results = await asyncio.gather(*(database.write(op) for op in operations), return_exceptions=True)
    assert [type(result) for result in results] == [int, InvalidRequestError, int, InternalError, InternalError, int]
    assert await database.read(values) == [1, 2, 3]


async def test_a_refusal_alone_undoes_its_own_writes(database: SqliteDatabase) -> None:
    for operation, error in ((refuse, InvalidRequestError), (fault, InternalError)):
        with pytest.raises(error):
            await database.write(operation)
    assert await database.read(values) == []


async def test_a_row_that_is_there_already_is_a_fault_and_no_reason_to_try_again(database: SqliteDatabase) -> None:
    await database.write(insert(1))
    with pytest.raises(InternalError):
        await database.write(insert(1))
    await database.write(insert(2))
    assert await database.read(values) == [1, 2]


async def test_writes_that_come_together_share_transactions(database: SqliteDatabase) -> None:
    commits = 0

    def count(connection: Any) -> None:
        nonlocal commits
        commits += 1

    sa.event.listen(database.writing_engine, "commit", count)
    await asyncio.gather(*(database.write(insert(n)) for n in range(100)))
    assert commits <= 3
    assert len(await database.read(values)) == 100


async def test_write_goes_through_although_its_caller_has_gone(database: SqliteDatabase) -> None:
    first = asyncio.create_task(database.write(insert(1)))
    second = asyncio.create_task(database.write(insert(2)))
    await asyncio.sleep(0)
    second.cancel()
    await first
    await asyncio.wait([second])
    await database.write(insert(3))
    assert await database.read(values) == [1, 2, 3]


async def test_locked_file_refuses_and_works_again_once_free(database: SqliteDatabase, tmp_path: Path) -> None:
    intruder = sqlite3.connect(tmp_path / "a.sqlite3", isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(*(database.write(insert(n)) for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailableError) for result in results)
    assert await database.read(values) == []  # readers do not wait for writers
    intruder.execute("COMMIT")
    intruder.close()
    await database.write(insert(1))
    assert await database.read(values) == [1]


async def test_full_disk_loses_nothing_and_works_again_once_there_is_room(database: SqliteDatabase) -> None:
    await database.write(insert(1))

    def limit(pages: int) -> Any:
        return lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages}") and None

    def blob(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE big (b BLOB)")
        connection.exec_driver_sql("INSERT INTO big VALUES (zeroblob(1000000))")

    await database.write(limit(4))
    results = await asyncio.gather(database.write(insert(2)), database.write(blob), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailableError) for result in results)  # one transaction
    assert "free space" in results[0].advice  # type: ignore[union-attr]  # checked above
    assert await database.read(values) == [1]
    await database.write(limit(100_000))
    await database.write(blob)
    await database.write(insert(2))
    assert await database.read(values) == [1, 2]


async def test_closed_database_refuses(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "a.sqlite3")
    await database.close()
    await database.close()
    for use in (database.write, database.read):
        with pytest.raises(StoreUnavailableError):
            await use(values)


# Opening


async def test_second_opener_of_a_file_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    path = tmp_path / "data" / "runs.sqlite3"
    first = await open_sqlite_store(path, migrate=True)
    with pytest.raises(StartupError) as raised:
        await open_sqlite_store(path, migrate=True)
    assert "another execution process" in raised.value.message
    await first.close()
    await (await open_sqlite_store(path, migrate=True)).close()


async def test_processes_on_one_file_hold_leases_under_one_name(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    names = set()
    for _ in range(2):
        await (await open_sqlite_store(path, migrate=True)).close()
        names.add(Path(f"{path}.owner").read_text())
    assert len(names) == 1


async def test_folder_that_cannot_be_written_stops_the_start_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError) as raised:
        await open_sqlite_store(tmp_path / "file" / "runs.sqlite3", migrate=True)
    assert "CARREL_EXECUTION_DATA_DIR" in raised.value.advice


async def test_locked_store_stops_the_start_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    await (await open_sqlite_store(path, migrate=True)).close()
    intruder = sqlite3.connect(path, isolation_level=None)
    intruder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StartupError) as raised:
        await open_sqlite_store(path, migrate=True, busy_timeout_s=0.1)
    assert "locked" in raised.value.message
    intruder.close()


async def test_old_schema_is_migrated_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    with pytest.raises(StartupError) as raised:
        await open_sqlite_store(path, migrate=False)
    assert "carrel migrate" in raised.value.advice
    assert migrate_sqlite(path) == migrations.HEAD
    await (await open_sqlite_store(path, migrate=False)).close()


async def test_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    await (await open_sqlite_store(path, migrate=True)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StartupError) as raised:
        await open_sqlite_store(path, migrate=True)
    assert "newer" in raised.value.message
    with pytest.raises(StartupError, match="newer"):
        migrate_sqlite(path)


async def test_a_schema_that_a_newer_version_only_expanded_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    await (await open_sqlite_store(path, migrate=True)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT ''")
        connection.execute("UPDATE schema_revision SET version_num = '9999'")
    connection.close()
    for migrate in (False, True):
        store = await open_sqlite_store(path, migrate=migrate)
        assert (await store.admit(admission(f"run-{migrate}", thread=f"t-{migrate}"))).run
        await store.close()
    assert migrate_sqlite(path) == "9999"


def test_a_store_of_the_first_release_gets_the_second_table_and_keeps_its_readers(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    migrate_sqlite(path)
    with sqlite3.connect(path) as plain:  # as the first release left it
        plain.execute("DROP TABLE schema_revision")
        plain.execute("UPDATE alembic_version SET version_num = '0004'")
    plain.close()
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        assert migrations.schema_of(connection) == migrations.Schema("0004", "0004")
        migrations.adopt(connection)
        migrations.mark(connection)
        assert migrations.schema_of(connection) == migrations.Schema("0004", "0004")
        assert sa.inspect(connection).has_table(migrations.VERSION_TABLE)
        migrations.demand_readers(connection, "0009")
        migrations.demand_readers(connection, "0007")
        assert migrations.schema_of(connection).readers_from == "0009", "it only rises"
        assert migrations.schema_of(connection).newer
        migrations.release_readers(connection)
        assert migrations.schema_of(connection) == migrations.Schema("0004", "0004")
    engine.dispose()


async def test_opening_what_is_up_to_date_needs_no_alembic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.sqlite3"
    await (await open_sqlite_store(path, migrate=True)).close()
    for name in [name for name in sys.modules if name.partition(".")[0] == "alembic"] or ["alembic"]:
        monkeypatch.setitem(sys.modules, name, None)
    await (await open_sqlite_store(path, migrate=True)).close()


def test_migrations_make_exactly_the_tables_and_undo_them(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    with engine.begin() as connection:
        assert migrations.current(connection) == ""
        migrations.upgrade(connection)
        assert migrations.current(connection) == migrations.HEAD
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


async def test_a_store_of_the_first_schema_goes_on_with_its_runs(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    migrate_sqlite(path, "0001")
    message = {"user_id": "alice", "thread_id": "t", "role": "user", "text": "x", "run_id": "r", "created_at": 1}
    rows = [
        ("users", {"user_id": "alice", "created_at": 1}),
        ("threads", {"user_id": "alice", "thread_id": "t", "created_at": 1, "updated_at": 1, "message_count": 3}),
        *(("messages", {**message, "seq": n}) for n in range(1, 4)),
        (
            "runs",
            {"user_id": "alice", "run_id": "r", "thread_id": "t", "request_id": "q", "state": "RUNNING"}
            | {"message": "x", "params": b"{}", "created_at": 1, "deadline_at": 2, "lease_expires_at": 0, "fence": 4}
            | {"identity": identity_json(admission("r").identity, PLAIN), "lease_owner": "another", "started_at": 1},
        ),
        (
            "stages",
            {"user_id": "alice", "run_id": "r", "stage_index": 0, "agent_name": "data", "state": "RUNNING"}
            | {"attempt": 1},
        ),
    ]
    with sqlite3.connect(path) as connection:
        for table, row in rows:
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])
    connection.close()
    store = await open_sqlite_store(path, migrate=True)
    (run,) = await store.take_over()
    assert (run.bound, run.waiting_for, run.stages[0].lost) == (False, None, 0)
    step = await store.suspend(run.ref, QUESTION, 60)
    assert step is not None
    assert await store.provide_input(run.identity.user, "r", "inp-1", b"true")
    (step,) = await store.promote(10)  # although its row does not say how many engines its user may have
    newer = await store.admit(admission("r2", thread="t", strategy=ThreadStrategy.ROLLBACK))
    assert newer.thread_existed
    await store.finish(newer.run.ref, success())
    page = await store.messages(run.identity.user, "t", 1, None)
    assert page.items[0].run_id == "r2"
    assert page.next == (4,)
    await store.close()


def test_schema_goes_back_to_the_first_and_up_again(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        migrations.upgrade(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        assert migrations.current(connection) == "0001"
        migrations.upgrade(connection)
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


async def test_a_sqlite_that_cannot_tell_what_it_updated_is_asked(tmp_path: Path) -> None:
    store = await open_sqlite_store(tmp_path / "runs.sqlite3", migrate=True)
    database = store._database.inner
    assert isinstance(database, SqliteDatabase)
    told: list[str] = []
    sa.event.listen(
        database.writing_engine, "before_cursor_execute", lambda _c, _u, statement, *_: told.append(statement)
    )
    for able in (True, False):
        database.writing_engine.dialect.update_returning = able
        told.clear()
        run = (await store.admit(admission(f"run-{able}", thread="t"))).run
        assert await store.finish(run.ref, replace(success(), reply=f"reply {able}"))
        assert await store.close_run(run.ref)
        assert not await store.close_run(run.ref)
        assert any("RETURNING" in statement for statement in told) == able
    messages = (await store.messages(ALICE, "t", 10, None)).items
    assert [message.text for message in messages] == ["hello", "reply True", "hello", "reply False"]
    await store.close()
