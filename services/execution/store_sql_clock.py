"""The database's clock, read without asking it: this machine's steady clock, set by the database's now and then.

Several processes decide over the same rows; were each to use its own wall clock, a machine whose clock is off by a
minute would end others' runs early and keep their reservations for ever. Leases are compared by the database itself.
"""

from __future__ import annotations

import time
from typing import Final

import sqlalchemy as sa

from services.execution.models import Micros
from services.execution.store_sql_database import Database
from services.execution.store_sql_leases import db_now

__all__ = ["DatabaseClock"]

# An answer that took longer says too little about the time at which it was given.
_SLOW_US: Final = 250_000


class DatabaseClock:
    """Now on the database's clock, to about half a round trip. Usable once it has been set."""

    def __init__(self) -> None:
        self._offset: int | None = None

    def __call__(self) -> Micros:
        """Now, in microseconds since the epoch."""
        assert self._offset is not None, "set when the store is opened"
        return time.monotonic_ns() // 1000 + self._offset

    async def set_by(self, database: Database) -> None:
        """Ask the database. Raises ``StoreUnavailableError``; then the clock goes on as it was."""
        now, at, took = await database.read(_sample)
        if self._offset is None or took < _SLOW_US:
            self._offset = now - at


def _sample(connection: sa.Connection) -> tuple[int, int, int]:
    began = time.monotonic_ns() // 1000
    now = db_now(connection)
    ended = time.monotonic_ns() // 1000
    return now, (began + ended) // 2, ended - began
