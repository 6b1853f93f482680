"""The store's statements, which run on SQLite here, are statements of PostgreSQL too."""

from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.url import make_url

from services.execution import (
    store_sql_admission,
    store_sql_budgets,
    store_sql_care,
    store_sql_keepers,
    store_sql_leases,
    store_sql_memory,
    store_sql_queue,
    store_sql_reads,
    store_sql_runs,
    store_sql_threads,
    store_sql_waiting,
)

MODULES = [
    store_sql_admission,
    store_sql_budgets,
    store_sql_care,
    store_sql_keepers,
    store_sql_leases,
    store_sql_memory,
    store_sql_queue,
    store_sql_reads,
    store_sql_runs,
    store_sql_threads,
    store_sql_waiting,
]


POSTGRESQL = make_url("postgresql://").get_dialect()()
Statement = sa.Select[Any] | sa.Insert | sa.Update | sa.Delete


def statements(module: ModuleType) -> dict[str, Statement]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith("_") and isinstance(value, sa.Select | sa.Insert | sa.Update | sa.Delete)
    }


def on_postgresql(statement: Statement) -> str:
    columns = [column.name for column in statement.table.columns] if isinstance(statement, sa.Insert) else None
    return str(statement.compile(dialect=POSTGRESQL, column_keys=columns))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_statements_compile_for_postgresql(module: ModuleType) -> None:
    found = statements(module)
    assert found
    for name, statement in found.items():
        assert "julianday" not in on_postgresql(statement), name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (store_sql_admission, "_LOCK_USER"),
        (store_sql_admission, "_OF_THREAD"),
        (store_sql_queue, "_QUEUED"),
        (store_sql_runs, "_HELD"),
        (store_sql_waiting, "_RUNNING"),
        (store_sql_waiting, "_ASKED"),
        (store_sql_leases, "_ORPHANS"),
        (store_sql_keepers, "_RUN"),
    ],
)
def test_what_a_write_decides_upon_is_locked_where_rows_can_be(module: ModuleType, name: str) -> None:
    assert "FOR UPDATE" in on_postgresql(statements(module)[name])
