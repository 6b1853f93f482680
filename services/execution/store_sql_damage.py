"""A run whose row can't be read hurts its own user and nobody else: whoever reads the runs of many passes over it.

Its values do not open (changed, moved, a key that is gone), or are not what was written. The log says so once for each
such run and process; the run stays as it is until the row is mended or the key is back.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from carrel.errors import CarrelError
from servicekit.logs import get_logger, hash_user
from services.execution.models import RunRecord, UserKey
from services.execution.store_sql_reads import read_run

__all__ = ["left_alone", "legible_run"]

_log: Final = get_logger("execution.store")
_MOST_TOLD: Final = 1000
# In the order in which they were told; the oldest are forgotten, and told again.
_told: dict[tuple[str, str], None] = {}


def left_alone() -> int:
    """How many runs this process has met lately that can't be read: bounds must have room for others beside them."""
    return len(_told)


def legible_run(connection: sa.Connection, user: UserKey, run_id: str) -> RunRecord | None:
    """The run; None if there is none, or if it can't be read. It only reads, so nothing is to be undone."""
    try:
        run = read_run(connection, user, run_id)
    except CarrelError as error:
        _tell(user, run_id, error.message)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # What the database gave is not of the form that was stored. The error's text may quote it.
        _tell(user, run_id, f"its values are damaged ({type(error).__name__})")
    else:
        _ = _told.pop((user, run_id), None)
        return run
    return None


def _tell(user: UserKey, run_id: str, reason: str) -> None:
    if (user, run_id) in _told:
        return
    while len(_told) >= _MOST_TOLD:
        del _told[next(iter(_told))]
    _told[user, run_id] = None
    _log.error(
        "a run can't be read and is left alone",
        user=hash_user(user),
        run_id=run_id,
        reason=reason,
        advice="bring the key back, or restore the run store from a backup",
    )
