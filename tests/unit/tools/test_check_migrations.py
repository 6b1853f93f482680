"""The rule for migrations, with migrations that keep it and that break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import sqlalchemy as sa

from services.execution.migrations import HEAD, READERS_FROM
from tools import check_migrations
from tools.check_migrations import Released, problems_of

RELEASED: Final = Released("0.9.0", "0008", {"runs": frozenset({"run_id", "state"}), "users": frozenset({"user_id"})})
READERS: Final = {"0007": "0004", "0008": "0004", "0009": "0004"}
Upgrade = Callable[[Any], object]


def _problems(upgrade: Upgrade, phase: str = "expand", readers: dict[str, str] | None = None) -> list[str]:
    module = SimpleNamespace(revision="0009", down_revision="0008", phase=phase, op=None)
    module.upgrade = lambda: upgrade(module.op)
    return problems_of(module, readers or READERS, RELEASED)


def _batched(op: Any) -> None:
    with op.batch_alter_table("runs") as batch:
        batch.drop_column("state")


def _fresh(op: Any) -> None:
    op.create_table("colours", sa.Column("name", sa.String(4)))
    op.create_index("ix", "colours", ["name"], unique=True)


def _indexes(op: Any) -> None:
    op.create_index("ix", "runs", ["state"])
    op.drop_index("ix2", table_name="runs")


QUIET: Final[dict[str, Upgrade]] = {
    "a new table, whatever it has": _fresh,
    "a column that may be missing": lambda op: op.add_column("runs", sa.Column("a", sa.String(3))),
    "a column with a default": lambda op: op.add_column(
        "runs", sa.Column("a", sa.String(3), nullable=False, server_default="")
    ),
    "indexes": _indexes,
    "a longer text": lambda op: op.alter_column(
        "runs", "state", existing_type=sa.String(16), type_=sa.String(32), existing_nullable=False
    ),
    "a larger number": lambda op: op.alter_column(
        "runs", "n", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False
    ),
}
LOUD: Final[dict[str, Upgrade]] = {
    "a table goes": lambda op: op.drop_table("runs"),
    "a column goes": lambda op: op.drop_column("runs", "state"),
    "a column goes in a batch": _batched,
    "a table is renamed": lambda op: op.rename_table("runs", "jobs"),
    "a column is renamed": lambda op: op.alter_column("runs", "state", new_column_name="status"),
    "a column that must be filled": lambda op: op.add_column("runs", sa.Column("a", sa.String(3), nullable=False)),
    "a text gets shorter": lambda op: op.alter_column("runs", "state", existing_type=sa.String(16), type_=sa.String(8)),
    "a type changes": lambda op: op.alter_column("runs", "n", existing_type=sa.Text(), type_=sa.BigInteger()),
    "a column must be filled from now on": lambda op: op.alter_column("runs", "state", nullable=False),
    "a default goes": lambda op: op.alter_column("runs", "state", server_default=None),
    "rows must differ from now on": lambda op: op.create_unique_constraint("uq", "runs", ["state"]),
    "an index makes rows differ": lambda op: op.create_index("ix", "runs", ["state"], unique=True),
    "a constraint": lambda op: op.create_check_constraint("ck", "runs", "state <> ''"),
    "statements that nobody looked at": lambda op: op.execute("UPDATE runs SET state = ''"),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_old_processes_do_not_notice_is_an_expansion(name: str) -> None:
    assert _problems(QUIET[name]) == []


@pytest.mark.parametrize("name", LOUD)
def test_what_old_processes_would_notice_is_refused_as_an_expansion(name: str) -> None:
    (problem,) = _problems(LOUD[name])
    assert problem.startswith("0009: ")


def test_a_contraction_waits_until_the_former_release_is_without_it() -> None:
    raised = {**READERS, "0009": "0008"}
    assert _problems(lambda op: op.drop_column("runs", "colour"), "contract", raised) == []
    assert _problems(lambda op: op.drop_table("colours"), "contract", raised) == []
    (problem,) = _problems(LOUD["a column goes"], "contract", raised)
    assert "0.9.0 still uses runs (state)" in problem
    (problem,) = _problems(LOUD["a table goes"], "contract", raised)
    assert "0.9.0 still uses runs" in problem
    (problem,) = _problems(LOUD["a column is renamed"], "contract", raised)
    assert "add the new one" in problem
    (problem,) = _problems(LOUD["a column that must be filled"], "contract", raised)
    assert "server_default" in problem
    (problem,) = _problems(LOUD["rows must differ from now on"], "contract", raised)
    assert "0.9.0" in problem


def test_a_contraction_says_who_can_still_read_and_the_former_release_is_among_them() -> None:
    drop: Upgrade = lambda op: op.drop_column("runs", "colour")  # noqa: E731 -- one of many such
    (problem,) = _problems(drop, "contract")
    assert "READERS_FROM must say" in problem
    (problem,) = _problems(drop, "contract", {**READERS, "0009": "0009"})
    assert "0.9.0 (revision 0008) could not be started" in problem


def test_an_expansion_leaves_its_readers_alone_and_every_migration_says_what_it_is() -> None:
    (problem,) = _problems(QUIET["indexes"], readers={**READERS, "0009": "0008"})
    assert "READERS_FROM must stay 0004" in problem
    (problem,) = _problems(QUIET["indexes"], phase="")
    assert "phase" in problem
    (problem,) = _problems(QUIET["indexes"], readers={"0008": "0004"})
    assert "add it to READERS_FROM" in problem


def test_our_own_migrations_keep_it() -> None:
    assert check_migrations.check() == []


def test_the_last_release_can_be_started_on_what_this_one_leaves() -> None:
    released = check_migrations.last_released()
    assert "runs" in released.columns
    assert READERS_FROM[HEAD] <= released.head


def test_a_migration_file_that_breaks_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "v0098_x.py").write_text(
        'from alembic import op\nrevision, down_revision, phase = "0098", "0004", "expand"\n'
        'def upgrade():\n    for name in ("state", "fence"):\n        op.drop_column("runs", name)\n',
        encoding="utf-8",
    )
    assert "READERS_FROM" in check_migrations.check(tmp_path)[0]
    module = check_migrations.load(tmp_path / "v0098_x.py")
    readers = {**READERS_FROM, "0098": "0004"}
    assert len(problems_of(module, readers, check_migrations.last_released())) == 2
