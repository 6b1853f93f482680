"""The schema's history. ``current`` is cheap and imports nothing; ``upgrade`` imports alembic, which takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

__all__ = ["HEAD", "current", "upgrade"]

HEAD: Final = "0005"


def current(connection: sa.Connection) -> str:
    """The revision that the database is at; empty for a database without our tables."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the database to a revision, within the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    # % begins an interpolation in alembic's configuration.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
