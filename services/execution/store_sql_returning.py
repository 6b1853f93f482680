"""An update that also tells of the row which it changed: one statement where the database can, two where it can't."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

__all__ = ["TellingUpdate"]


class TellingUpdate:
    """An update of at most one row.

    Args:
        update: The update.
        key: What finds the row also once it is changed.
        columns: What to tell; of the row itself as it is then, of anything else as it is but for this update.
    """

    def __init__(self, update: sa.Update, key: sa.ColumnElement[bool], *columns: Any) -> None:
        self.at_once = update.returning(*columns)
        self.update = update
        self.select = sa.select(*columns).where(key)

    def run(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> Any:
        """The row, or None when there is none to change."""
        # SQLite has it from 3.35; some systems still have 3.34.
        if connection.dialect.update_returning:
            return connection.execute(self.at_once, parameters).first()
        if connection.execute(self.update, parameters).rowcount == 0:
            return None
        return connection.execute(self.select, parameters).one()
