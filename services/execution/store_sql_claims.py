"""Names that are given once, users whose logins were revoked, and where a run's attempt is: a transaction each.

All of it is small and shared by every replica of execution and, through execution, of the gateway. Times of claims and
revocations are the database's.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from carrel.errors import LimitExceededError
from services.execution.models import Micros, Page, RunRef, RunState, UserKey
from services.execution.models_steps import Revocation, Revocations, SignedOut
from services.execution.store import PageKey
from services.execution.tables import DbNow, claims, revocations, runs, signed_out

__all__ = [
    "claim_once",
    "drop_old_claims",
    "list_revocations",
    "list_signed_out",
    "place_attempt",
    "revoke_user",
    "sign_out",
]

# How long a revocation is kept: longer than any login token should live.
_KEPT_US: Final = 90 * 86_400_000_000
# A transaction that began before another may commit after it: what was recorded so shortly before is told again.
_OVERLAP_US: Final = 30_000_000

# Logins of one user that are signed out and have not ended by themselves.
_MOST_SIGNED_OUT: Final = 1000

_P: Final = sa.bindparam
_NOW: Final = sa.select(DbNow())
_REVOKE: Final = (
    revocations.update().where(revocations.c.user_id == _P("u")).values(not_before=DbNow(), reason=_P("why"))
)
_AT: Final = sa.select(revocations.c.not_before).where(revocations.c.user_id == _P("u"))
_LIST: Final = (
    sa.select(revocations.c.user_id, revocations.c.not_before)
    .where(revocations.c.not_before > _P("after"))
    .order_by(revocations.c.not_before, revocations.c.user_id)
)
_COUNT_SIGNED_OUT: Final = (
    sa.select(sa.func.count())
    .select_from(signed_out)
    .where(signed_out.c.user_id == _P("u"), signed_out.c.expires_at > DbNow())
)
_PLACE: Final = (
    runs.update()
    .where(
        runs.c.user_id == _P("u"),
        runs.c.run_id == _P("run"),
        runs.c.fence == _P("known_fence"),
        runs.c.state == RunState.RUNNING.value,
    )
    .values(agent_instance=_P("address"))
)


def claim_once(connection: sa.Connection, name: str, ttl_us: int) -> bool:
    """See ``RunStore.claim_once``."""
    ends = int(connection.execute(_NOW).scalar_one()) + ttl_us
    return _insert_new(connection, claims, {"name": name, "expires_at": ends})


def revoke_user(connection: sa.Connection, user: UserKey, reason: str) -> Micros:
    """See ``RunStore.revoke_user``."""
    row = {"user_id": user, "not_before": 0, "reason": ""}
    _insert_new(connection, revocations, row)
    connection.execute(_REVOKE, {"u": user, "why": reason})
    return int(connection.execute(_AT, {"u": user}).scalar_one())


def list_revocations(connection: sa.Connection, after: Micros) -> Revocations:
    """See ``RunStore.revocations``."""
    # Before the rows are read: what is recorded meanwhile is for the next time.
    now = int(connection.execute(_NOW).scalar_one())
    rows = connection.execute(_LIST, {"after": max(0, after - _OVERLAP_US)})
    return Revocations(tuple(Revocation(UserKey(row.user_id), row.not_before) for row in rows), now)


def sign_out(connection: sa.Connection, user: UserKey, login: str, expires_at: Micros) -> None:
    """See ``RunStore.sign_out``."""
    count = int(connection.execute(_COUNT_SIGNED_OUT, {"u": user}).scalar_one())
    if count >= _MOST_SIGNED_OUT:
        raise LimitExceededError(
            f"{count} logins of this user are signed out and have not ended by themselves",
            advice='sign out with {"everywhere": true}, which ends all of them at once',
            limit="signed_out_logins_per_user",
            limit_value=_MOST_SIGNED_OUT,
            use=count,
        )
    now = int(connection.execute(_NOW).scalar_one())
    row = {"login": login, "user_id": user, "recorded_at": now, "expires_at": expires_at}
    _insert_new(connection, signed_out, row)


def list_signed_out(connection: sa.Connection, after: Micros, limit: int, page: PageKey | None) -> Page[SignedOut]:
    """See ``RunStore.signed_out``."""
    key = (signed_out.c.recorded_at, signed_out.c.login)
    query = sa.select(signed_out).where(
        signed_out.c.recorded_at > max(0, after - _OVERLAP_US), signed_out.c.expires_at > DbNow()
    )
    if page is not None:
        query = query.where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(value) for value in page)))
    rows = connection.execute(query.order_by(*key).limit(limit + 1)).all()
    shown = rows[:limit]
    items = tuple(SignedOut(row.login, UserKey(row.user_id), row.expires_at, row.recorded_at) for row in shown)
    return Page(items, (shown[-1].recorded_at, shown[-1].login) if len(rows) > limit else None)


def drop_old_claims(connection: sa.Connection) -> None:
    """Forget names and logins whose time is over, and revocations that no login can be older than."""
    connection.execute(signed_out.delete().where(signed_out.c.expires_at <= DbNow()))
    connection.execute(claims.delete().where(claims.c.expires_at <= DbNow()))
    connection.execute(revocations.delete().where(revocations.c.not_before <= DbNow() - _KEPT_US))


def place_attempt(connection: sa.Connection, ref: RunRef, address: str) -> bool:
    """See ``RunStore.place_attempt``."""
    values = {"u": ref.user, "run": ref.run_id, "known_fence": ref.fence, "address": address}
    return connection.execute(_PLACE, values).rowcount == 1


def _insert_new(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert a row unless its key is there, also when somebody else is just about to: whether it was inserted."""
    if connection.dialect.name == "sqlite":
        return connection.execute(table.insert().prefix_with("OR IGNORE"), row).rowcount == 1
    from sqlalchemy.dialects.postgresql import insert

    return connection.execute(insert(table).on_conflict_do_nothing(), row).rowcount == 1
