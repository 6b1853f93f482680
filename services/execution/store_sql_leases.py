"""Leases as operations of one transaction each, and what became of runs that others may have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from services.execution.domain.states import ENDABLE
from services.execution.models import UNENDED_STATES, RunRecord, UserKey
from services.execution.store_sql_damage import legible_run
from services.execution.tables import DbNow, keepers, owners, runs

__all__ = ["TAKEN_AT_ONCE", "clean_owners", "db_now", "decided", "release_leases", "renew_leases", "take_over"]

# So many in a transaction: others write between them.
TAKEN_AT_ONCE: Final = 500
_ASKED_AT_ONCE: Final = 50
# How long the row of a process that is gone stays, for whoever looks into the database.
_KEPT_US: Final = 3600 * 1_000_000

_P: Final = sa.bindparam
_UNENDED: Final = runs.c.state.in_(sorted(UNENDED_STATES))
_LEASED: Final = DbNow() + _P("lease", type_=sa.BigInteger)
_LIVING: Final = sa.select(owners.c.owner).where(owners.c.expires_at > DbNow())

_ORPHANS: Final = (
    sa.select(runs.c.user_id, runs.c.run_id)
    .where(_UNENDED, runs.c.lease_owner != _P("owner"), runs.c.lease_owner.not_in(_LIVING))
    .order_by(runs.c.created_at, runs.c.place)
    .limit(TAKEN_AT_ONCE)
    .with_for_update(skip_locked=True)
)
_TAKE: Final = (
    runs.update()
    .where(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
    .values(lease_owner=_P("owner"), fence=runs.c.fence + 1)
)
_DISOWN: Final = runs.update().where(_UNENDED, runs.c.lease_owner == _P("owner")).values(lease_owner="")
_RENEW: Final = owners.update().where(owners.c.owner == _P("me")).values(expires_at=_LEASED)
_FIRST_LEASE: Final = owners.insert().values(owner=_P("me"), expires_at=_LEASED)
_RELEASE: Final = owners.update().where(owners.c.owner == _P("me")).values(expires_at=0)
_DROP_OWNERS: Final = owners.delete().where(owners.c.expires_at <= DbNow() - _KEPT_US)
_DROP_KEEPERS: Final = keepers.delete().where(keepers.c.owner.not_in(_LIVING))
_NOW: Final = sa.select(DbNow())
# Pairs of conditions, of which SQLite looks each up in the key; of ``(user_id, run_id) IN (…)`` it makes a walk over
# the whole table. The state is looked at outside: as a condition it would be a walk over all unended runs.
_STATES: Final = sa.select(runs.c.user_id, runs.c.run_id, runs.c.state, runs.c.lease_owner).where(
    sa.or_(*(sa.and_(runs.c.user_id == _P(f"u{n}"), runs.c.run_id == _P(f"r{n}")) for n in range(_ASKED_AT_ONCE)))
)


def take_over(connection: sa.Connection, *, owner: str, lease: int, former: bool) -> tuple[tuple[RunRecord, ...], bool]:
    """Part of ``RunStore.take_over``: the oldest orphaned runs that can be read, and whether there are more.

    ``former`` at a process's start: then what it once held is nobody's, and its own to take.
    """
    if former:
        renew_leases(connection, owner=owner, lease=lease)
        connection.execute(_DISOWN, {"owner": owner})
    taken, found = [], connection.execute(_ORPHANS, {"owner": owner}).all()
    for row in found:
        connection.execute(_TAKE, {"u": row.user_id, "run": row.run_id, "owner": owner})
        # One that can't be read is taken all the same: so it is not found again and again before all others.
        taken.append(legible_run(connection, row.user_id, row.run_id))
    return tuple(run for run in taken if run is not None), len(found) >= TAKEN_AT_ONCE


def renew_leases(connection: sa.Connection, *, owner: str, lease: int) -> None:
    """See ``RunStore.renew_leases``."""
    if connection.execute(_RENEW, {"me": owner, "lease": lease}).rowcount == 0:
        connection.execute(_FIRST_LEASE, {"me": owner, "lease": lease})


def release_leases(connection: sa.Connection, *, owner: str) -> None:
    """See ``RunStore.release_leases``."""
    connection.execute(_RELEASE, {"me": owner})


def clean_owners(connection: sa.Connection) -> None:
    """Forget processes that are long gone, and the callers that were there."""
    connection.execute(_DROP_OWNERS)
    connection.execute(_DROP_KEEPERS)


def db_now(connection: sa.Connection) -> int:
    """Now on the database's clock, in microseconds."""
    return int(connection.execute(_NOW).scalar_one())


def decided(
    connection: sa.Connection, keys: Sequence[tuple[UserKey, str]], *, owner: str
) -> frozenset[tuple[UserKey, str]]:
    """See ``RunStore.decided``."""
    open_ones: set[tuple[UserKey, str]] = set()
    for first in range(0, len(keys), _ASKED_AT_ONCE):
        some = list(keys[first : first + _ASKED_AT_ONCE])
        some += [some[-1]] * (_ASKED_AT_ONCE - len(some))
        asked = {f"u{n}": user for n, (user, _) in enumerate(some)} | {f"r{n}": run for n, (_, run) in enumerate(some)}
        rows = connection.execute(_STATES, asked)
        open_ones.update(
            (UserKey(row.user_id), row.run_id) for row in rows if row.state in ENDABLE and row.lease_owner == owner
        )
    return frozenset(keys) - open_ones
