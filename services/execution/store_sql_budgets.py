"""Model budgets as operations of one transaction each: a row for each user and period in which anything was used."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from services.execution.models import UserKey
from services.execution.models_steps import Budget
from services.execution.tables import DbNow, budgets

__all__ = ["drop_old_budgets", "read_budget", "use_budget"]

_P: Final = sa.bindparam
_NOW: Final = sa.select(DbNow())
_HERE: Final = sa.and_(
    budgets.c.user_id == _P("u"), budgets.c.starts_at == _P("first"), budgets.c.ends_at == _P("until")
)
_USED: Final = sa.select(budgets.c.used).where(_HERE)
_USE: Final = budgets.update().where(_HERE).values(used=budgets.c.used + _P("n"))
_BEGIN: Final = budgets.insert().values(user_id=_P("u"), starts_at=_P("first"), ends_at=_P("until"), used=0)
_DROP_OLD: Final = budgets.delete().where(budgets.c.ends_at <= DbNow())


def read_budget(connection: sa.Connection, user: UserKey, tokens: int, concurrency: int, period_s: float) -> Budget:
    """See ``RunStore.budget``."""
    return _left(connection, _period(connection, user, period_s), tokens, concurrency)


def use_budget(
    connection: sa.Connection, user: UserKey, used: int, tokens: int, concurrency: int, period_s: float
) -> Budget:
    """See ``RunStore.use_budget``."""
    key = _period(connection, user, period_s)
    if used > 0 and connection.execute(_USE, {**key, "n": used}).rowcount == 0:
        _begin(connection, key)
        connection.execute(_USE, {**key, "n": used})
    return _left(connection, key, tokens, concurrency)


def drop_old_budgets(connection: sa.Connection) -> None:
    """Forget the use in periods that are over."""
    connection.execute(_DROP_OLD)


def _period(connection: sa.Connection, user: UserKey, period_s: float) -> dict[str, Any]:
    length = max(1, round(period_s * 1_000_000))
    first = int(connection.execute(_NOW).scalar_one()) // length * length
    return {"u": user, "first": first, "until": first + length}


def _begin(connection: sa.Connection, key: dict[str, Any]) -> None:
    if connection.dialect.name == "sqlite":  # its writer is alone
        connection.execute(_BEGIN, key)
        return
    from sqlalchemy.dialects.postgresql import insert

    row = {"user_id": key["u"], "starts_at": key["first"], "ends_at": key["until"], "used": 0}
    connection.execute(insert(budgets).on_conflict_do_nothing(), row)


def _left(connection: sa.Connection, key: dict[str, Any], tokens: int, concurrency: int) -> Budget:
    used = connection.execute(_USED, key).scalar() or 0
    return Budget(max(0, tokens - used), concurrency, key["until"])
