"""The schema's history, and who may use a schema. ``upgrade`` imports alembic, which takes its time; the rest is cheap.

Two tables of one row each. ``schema_revision`` is the revision that the tables are at. ``alembic_version`` is the least
revision that a process has to know to use them: expanding a schema leaves it where it was, so that processes of the
former release, which know nothing of the new columns, go on and may be started again; contracting raises it. The first
release compared ``alembic_version`` with what it knew, which is why the second table and not the first is the new one.

The rule for migrations is in docs/upgrades.md; tools/check_migrations.py holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import sqlalchemy as sa

__all__ = [
    "HEAD",
    "READERS_FROM",
    "VERSION_TABLE",
    "Schema",
    "adopt",
    "current",
    "demand_readers",
    "mark",
    "release_readers",
    "schema_of",
    "upgrade",
]

VERSION_TABLE: Final = "schema_revision"
_MARKER: Final = "alembic_version"

# Revision → the least revision that a process must know to use a schema at it. The first four came before the first
# release, and nothing older than themselves could use them.
READERS_FROM: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0001": "0001",
        "0002": "0002",
        "0003": "0003",
        "0004": "0004",
        "0005": "0004",
        "0006": "0004",
    }
)
HEAD: Final = max(READERS_FROM)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database says about its tables; both are empty for one without ours."""

    revision: str
    readers_from: str

    @property
    def usable(self) -> bool:
        """Whether this version can work on it as it is: at our revision, or expanded beyond it."""
        return self.revision >= HEAD >= self.readers_from

    @property
    def newer(self) -> bool:
        """Whether it has lost something that this version needs: a later version contracted it."""
        return self.readers_from > HEAD


def schema_of(connection: sa.Connection) -> Schema:
    """What the database is at."""
    inspector = sa.inspect(connection)
    marker = _read(connection, _MARKER) if inspector.has_table(_MARKER) else ""
    revision = _read(connection, VERSION_TABLE) if inspector.has_table(VERSION_TABLE) else marker
    return Schema(revision, marker)


def current(connection: sa.Connection) -> str:
    """The revision that the database is at; empty for a database without our tables."""
    return schema_of(connection).revision


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the database to a revision, within the caller's transaction. One beyond HEAD is left as it is."""
    if revision == "head" and current(connection) > HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    # % begins an interpolation in alembic's configuration.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def adopt(connection: sa.Connection) -> None:
    """Before migrations run: take over the revision of a database that the first release made."""
    found = schema_of(connection)
    if not found.revision or sa.inspect(connection).has_table(VERSION_TABLE):
        return
    connection.exec_driver_sql(_MAKE.format(table=VERSION_TABLE))
    _write(connection, VERSION_TABLE, found.revision)


def mark(connection: sa.Connection) -> None:
    """After migrations ran: say which processes may use what is there now.

    A marker that is further than the revision asks for stays: what a process has written may ask for more than the
    tables do.
    """
    found = schema_of(connection)
    if not found.revision:
        return
    connection.exec_driver_sql(_MAKE.format(table=_MARKER))
    wanted = READERS_FROM[found.revision]
    kept = found.readers_from if wanted < found.readers_from <= found.revision else wanted
    _write(connection, _MARKER, kept)


def demand_readers(connection: sa.Connection, revision: str) -> None:
    """From here on only processes that know ``revision`` may start on this database.

    For whoever begins to write what older ones would misread although the tables have not changed, such as values in
    another form. It holds until ``release_readers``: who goes back to a version before it has to restore a backup.
    """
    # One statement: processes that start at once may all say it.
    raised = f"UPDATE {_MARKER} SET version_num = :it WHERE version_num < :it"  # noqa: S608 -- ours
    connection.execute(sa.text(raised), {"it": revision})


def release_readers(connection: sa.Connection) -> None:
    """Take back what was demanded: nothing is left that older processes would misread.

    Of a revision that only a later version knows it is not known what that demands; then the mark stays.
    """
    if wanted := READERS_FROM.get(current(connection)):
        lowered = f"UPDATE {_MARKER} SET version_num = :it WHERE version_num > :it"  # noqa: S608 -- ours
        connection.execute(sa.text(lowered), {"it": wanted})


_MAKE: Final = (
    "CREATE TABLE IF NOT EXISTS {table} (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT {table}_pkc PRIMARY KEY (version_num))"
)


def _read(connection: sa.Connection, table: str) -> str:
    return str(connection.exec_driver_sql(f"SELECT version_num FROM {table}").scalar() or "")  # noqa: S608 -- ours


def _write(connection: sa.Connection, table: str, revision: str) -> None:
    connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 -- ours
    connection.execute(sa.text(f"INSERT INTO {table} (version_num) VALUES (:it)"), {"it": revision})  # noqa: S608
