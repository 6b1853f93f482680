"""Columns as every database takes them: its clock, and text that people and agents chose."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["DbNow", "LongWords", "Words"]


class DbNow(FunctionElement[int]):
    """Now on the database's clock, in microseconds: the one clock that all replicas of execution share."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(DbNow, "sqlite")
def _sqlite_now(element: DbNow, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"


@compiles(DbNow, "postgresql")
def _postgresql_now(element: DbNow, compiler: Any, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


class Words(sa.types.TypeDecorator[str]):
    """Text that people and agents chose, as every database takes it.

    PostgreSQL refuses a NUL and what is longer than its column: then a run with such a text could not even end. SQLite
    takes both. So a NUL becomes a replacement character, and names, which are there to be read, are cut.
    """

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """What is stored."""
        if value is None:
            return None
        length: int | None = self.impl_instance.length  # type: ignore[attr-defined]  # `impl` has it
        if "\0" in value:
            value = value.replace("\0", "\ufffd")
        return value if length is None or len(value) <= length else value[:length]


class LongWords(Words):
    """The same without a bound."""

    impl = sa.Text
    cache_ok = True
