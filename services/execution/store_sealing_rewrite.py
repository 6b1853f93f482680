"""Rewriting what is stored under the newest key, or as plain values: for ``carrel reencrypt``, in small transactions.

On a database that several processes share it goes on beside them: a value that changes meanwhile is left to its own
writer, who uses the newest key anyway. A file is rewritten while nothing runs on it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from services.execution.store_artifacts import FIELD, open_artifact
from services.execution.store_sealing import Seals, key_of
from services.execution.store_sql_database import Database
from services.execution.store_sql_memory import bound_to
from services.execution.tables import artifact_bytes, inputs, journal, memories, messages, outbox, runs, stages

__all__ = ["Rewritten", "rewrite_database", "rewrite_folder"]

_BATCH: Final = 200
# Artifacts have megabytes.
_BIG_BATCH: Final = 4

_FIELDS: Final[Sequence[tuple[sa.Table, tuple[str, ...]]]] = (
    (runs, ("message", "params", "identity", "result", "error")),
    (stages, ("result",)),
    (messages, ("text",)),
    (inputs, ("prompt", "schema_json", "arguments", "value")),
    (outbox, ("data",)),
    (journal, ("result", "error")),
    (memories, ("data",)),
    (artifact_bytes, ("data",)),
)
_V = TypeVar("_V", bytes, str)
_Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """How many values were looked at, and how many of them were written anew."""

    values: int
    changed: int


async def rewrite_database(database: Database, opens: Seals, seals: Seals, newest: str, told: _Progress) -> Rewritten:
    """Rewrite every value of every table that is not sealed with the newest key.

    Args:
        database: Where the tables are.
        opens: Opens what is there.
        seals: Seals it anew.
        newest: The name of the key that ``seals`` uses; empty for none.
        told: Is told each table's name and how many of its values were changed.

    Raises:
        StoreUnavailableError: A value's key is not here, or the database is away. What was rewritten is.
        CorruptStoreError: A value does not open.
    """
    values = changed = 0
    for table, fields in _FIELDS:
        mine, after = 0, None
        while True:
            batch = _Batch(table, fields, opens, seals, newest, after)
            looked, rewritten, after = await database.write(batch.work)
            values, mine = values + looked, mine + rewritten
            if after is None:
                break
        changed += mine
        told(table.name, mine)
    return Rewritten(values, changed)


class _Batch:
    """Some rows of a table, as an operation of one transaction. It may be run again from the start."""

    def __init__(
        self,
        table: sa.Table,
        fields: tuple[str, ...],
        opens: Seals,
        seals: Seals,
        newest: str,
        after: tuple[Any, ...] | None,
    ) -> None:
        self._table = table
        self._fields = fields
        self._opens = opens
        self._seals = seals
        self._newest = newest
        self._after = after
        self._size = _BIG_BATCH if table is artifact_bytes else _BATCH

    def work(self, connection: sa.Connection) -> tuple[int, int, tuple[Any, ...] | None]:
        """Values looked at, values changed, and the last row's key while there may be more."""
        key = list(self._table.primary_key.columns)
        columns = {column.name: column for column in (*key, self._table.c.run_id)}
        columns |= {name: self._table.c[name] for name in self._fields}
        if self._table is memories:
            columns["thread_id"] = memories.c.thread_id
        query = sa.select(*columns.values()).order_by(*key).limit(self._size)
        if self._after is not None:
            query = query.where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(value) for value in self._after)))
        rows = connection.execute(query).all()
        looked = changed = 0
        for row in rows:
            for name in self._fields:
                value = getattr(row, name)
                if value is None:
                    continue
                looked += 1
                fresh = self._fresh(name, row, value if isinstance(value, str) else bytes(value))
                if fresh is not None:
                    changed += self._replace(connection, key, row, name, value, fresh)
        last = tuple(getattr(rows[-1], column.name) for column in key) if len(rows) == self._size else None
        return looked, changed, last

    def _fresh(self, name: str, row: Any, value: bytes | str) -> bytes | str | None:
        """The value as it is to be; None when it is."""
        if key_of(value) == self._newest and self._table is not artifact_bytes:
            return None
        field, user, run = f"{self._table.name}.{name}", row.user_id, row.run_id
        if self._table is memories:
            run = bound_to(run, row.thread_id, row.agent_name)
        if isinstance(value, str):
            opened = self._opens.open_text(field, user, run, value)
            return _changed(value, self._seals.seal_text(field, user, run, opened))
        if self._table is artifact_bytes:
            return _fresh_artifact(self._opens, self._seals, self._newest, user, run, value, row.sha256)
        return _changed(value, self._seals.seal(field, user, run, self._opens.open(field, user, run, value)))

    def _replace(
        self, connection: sa.Connection, key: list[sa.Column[Any]], row: Any, name: str, old: Any, new: Any
    ) -> int:
        here = [column == getattr(row, column.name) for column in key]
        # Whoever changed it since has done what is done here.
        statement = self._table.update().where(*here, self._table.c[name] == old).values({name: new})
        return connection.execute(statement).rowcount


def rewrite_folder(root: Path, opens: Seals, seals: Seals, newest: str) -> Rewritten:
    """Rewrite the files of artifacts in a local folder. Each is replaced in one step.

    Raises:
        OSError: The folder cannot be read or written.
        StoreUnavailableError, CorruptStoreError: As ``rewrite_database``.
    """
    values = changed = 0
    for path in sorted(root.glob("*/*/*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        values += 1
        fresh = _fresh_artifact(
            opens, seals, newest, path.parent.parent.name, path.parent.name, path.read_bytes(), path.name
        )
        if fresh is not None:
            partial = path.parent / f".{path.name}.{secrets.token_hex(4)}"
            with partial.open("xb") as file:
                file.write(fresh)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            changed += 1
    return Rewritten(values, changed)


def _fresh_artifact(  # noqa: PLR0917 -- twice in this file, in the same order
    opens: Seals, seals: Seals, newest: str, user: str, run: str, data: bytes, sha256: str
) -> bytes | None:
    plain = hashlib.sha256(data).hexdigest() == sha256
    if (plain and not newest) or (not plain and key_of(data) == newest):
        return None
    opened = open_artifact(opens, user, run, data, sha256)
    return None if opened is None else _changed(data, seals.seal(FIELD, user, run, opened))


def _changed(old: _V, new: _V) -> _V | None:
    return None if old == new else new
