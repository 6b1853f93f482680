"""Holds migrations of the run store to the rule of docs/upgrades.md: expand first, contract a release later.

    python -m tools.check_migrations

Each migration is run against a recorder in alembic's place, so that loops and helpers count as what they do. An
``expand`` may only do what processes of the former release do not notice. A ``contract`` may take away what the former
release, whose wheel is kept under releases/, does not have in its tables any more. It looks at ``upgrade`` alone:
nothing takes a migration back in production.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from tools.releases import kept_wheels

ROOT: Final = Path(__file__).resolve().parent.parent
MIGRATIONS: Final = ROOT / "services" / "execution" / "migrations" / "versions"
RELEASES: Final = ROOT / "releases"
# They came before the first release: nothing that is older than they are could be running.
HISTORY: Final = frozenset({"0001", "0002", "0003", "0004"})
_IN_WHEEL: Final = "services/execution/"
_SILENT: Final = frozenset({"create_table", "drop_index", "create_table_comment", "f"})


@dataclass(frozen=True, slots=True)
class Released:
    """What the former release knows: its newest revision, and its columns by table."""

    version: str
    head: str
    columns: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a migration."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def table(self) -> str:
        """The table that it is about."""
        place = {"create_index": 1, "create_unique_constraint": 1, "create_check_constraint": 1}.get(self.name, 0)
        place = 1 if self.name in {"create_foreign_key", "drop_constraint"} else place
        given = self.args[place] if len(self.args) > place else self.options.get("table_name", "")
        return str(given)

    @property
    def columns(self) -> list[str]:
        """The columns that it takes away or changes; none for a whole table."""
        if self.name in {"drop_column", "alter_column"}:
            return [str(self.args[1])]
        return []


@dataclass
class Recorder:
    """Stands in for ``alembic.op``: everything that is called is written down."""

    table: str = ""
    steps: list[Step] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **options: Any) -> None:
            self.steps.append(Step(name, self._with_table(name, args), options))

        return called

    def f(self, name: str) -> str:
        """A name that is final."""
        return name

    @contextmanager
    def batch_alter_table(self, table_name: str, **_options: Any) -> Iterator[Recorder]:
        """The same operations on one table."""
        yield Recorder(table_name, self.steps)

    def _with_table(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.table:
            return args
        at = 1 if name in {"create_index", "create_unique_constraint", "create_check_constraint"} else 0
        return (*args[:at], self.table, *args[at:])


def steps_of(module: Any) -> list[Step]:
    """What a migration's ``upgrade`` does."""
    recorder = Recorder()
    module.op = recorder
    module.upgrade()
    return recorder.steps


def problems_of(module: Any, readers_from: Mapping[str, str], released: Released) -> list[str]:
    """What is wrong with one migration.

    Args:
        module: It has ``revision``, ``down_revision``, ``phase`` and ``upgrade``.
        readers_from: As ``services.execution.migrations.READERS_FROM``.
        released: The former release.
    """
    revision, before = str(module.revision), str(module.down_revision)
    phase = getattr(module, "phase", "")
    if revision not in readers_from:
        return [f'{revision}: add it to READERS_FROM, with "{readers_from.get(before, before)}" if it only expands']
    steps = steps_of(module)
    if phase == "expand":
        found = [problem for step in steps if (problem := _noticed(step, _made(steps)))]
        found = [f"{problem}: old processes would notice; do it in a later release, as contract" for problem in found]
        if readers_from[revision] != readers_from[before]:
            found.append(f"READERS_FROM must stay {readers_from[before]}: whoever used the schema still can")
    elif phase == "contract":
        found = [problem for step in steps for problem in _still_used(step, released)]
        if readers_from[revision] <= readers_from[before]:
            found.append("READERS_FROM must say which revision no longer needs what goes")
    else:
        found = ['say phase = "expand" or phase = "contract"']
    if readers_from[revision] > released.head:
        found.append(f"{released.version} (revision {released.head}) could not be started on it any more")
    return [f"{revision}: {problem}" for problem in found]


def _made(steps: Sequence[Step]) -> frozenset[str]:
    return frozenset(str(step.args[0]) for step in steps if step.name == "create_table")


def _noticed(step: Step, made: frozenset[str]) -> str:
    """Why processes of the former release would notice; empty if they do not."""
    if step.name in _SILENT or step.table in made:
        return ""
    if step.name == "add_column":
        column: sa.Column[Any] = step.args[1]
        filled = column.nullable or column.server_default is not None
        return "" if filled else f"{step.table}.{column.name} is NOT NULL without a server_default"
    if step.name == "create_index":
        return f"a unique index on {step.table}" if step.options.get("unique") else ""
    if step.name == "alter_column":
        return "" if _only_widens(step) else f"{step.table}.{step.args[1]} is changed"
    return f"{step.name} of {step.table or 'something'}"


def _only_widens(step: Step) -> bool:
    changes = {name: value for name, value in step.options.items() if not name.startswith("existing_")}
    new, old = changes.pop("type_", None), step.options.get("existing_type")
    changes.pop("server_default", None)
    if changes:
        return False
    if new is None:
        return step.options.get("server_default") is not None
    if isinstance(new, sa.String) and isinstance(old, sa.String) and not isinstance(old, sa.Text):
        return new.length is None or (old.length is not None and new.length >= old.length)
    return isinstance(new, sa.BigInteger) and isinstance(old, sa.Integer)


def _still_used(step: Step, released: Released) -> Iterator[str]:
    """What of a contracting step the former release still has in its tables."""
    if step.name == "rename_table" or "new_column_name" in step.options:
        yield f"{step.name} of {step.table}: add the new one, and drop the old one a release later"
    elif not _noticed(step, frozenset()):
        return
    elif step.name in {"drop_table", "drop_column", "alter_column"}:
        there = released.columns.get(step.table, frozenset())
        used = [name for name in step.columns if name in there] if step.columns else sorted(there)
        if used:
            yield f"{step.name}: {released.version} still uses {step.table} ({', '.join(used)})"
    elif step.name == "add_column":
        yield f"{step.args[1].name} of {step.table} needs a server_default: {released.version} does not know it"
    elif step.name != "execute" and step.table in released.columns:
        yield f"{step.name} of {step.table}: what {released.version} writes may break it"


def last_released(folder: Path = RELEASES) -> Released:
    """The release before this checkout, of those that are kept.

    Raises:
        SystemExit: None is.
    """
    found = kept_wheels(folder)
    if not found:
        sys.exit(f"no wheel under {folder}: migrations can't be compared with the former release")
    with zipfile.ZipFile(found[-1]) as wheel:
        source = wheel.read(_IN_WHEEL + "tables.py").decode()
        names = [re.search(r"/migrations/versions/v(\d{4})_", name) for name in wheel.namelist()]
    tables = types.ModuleType("released_tables")
    exec(compile(source, f"{found[-1].name}/tables.py", "exec"), tables.__dict__)  # noqa: S102 -- our own release
    columns = {table.name: frozenset(table.columns.keys()) for table in tables.METADATA.sorted_tables}
    return Released(found[-1].name.split("-")[1], max(match[1] for match in names if match), columns)


def load(path: Path) -> Any:
    """A migration's module."""
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(folder: Path = MIGRATIONS) -> list[str]:
    """Every problem of every migration since the first release."""
    from services.execution.migrations import READERS_FROM

    released = last_released()
    modules = [load(path) for path in sorted(folder.glob("v*.py"))]
    return [
        problem
        for module in modules
        if module.revision not in HISTORY
        for problem in problems_of(module, READERS_FROM, released)
    ]


if __name__ == "__main__":
    found = check()
    print("\n".join(found) or "migrations: each can be run while the former release works on")
    sys.exit(bool(found))
