"""Which processes have a caller that keeps a bound run alive, as operations of one transaction each."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.execution.domain.states import ENDABLE
from services.execution.models import UserKey
from services.execution.tables import DbNow, keepers, owners, runs

__all__ = ["is_kept", "keep", "let_go"]

_P: Final = sa.bindparam
_RUN: Final = (
    sa.select(runs.c.run_id)
    .where(
        runs.c.user_id == _P("u"),
        runs.c.run_id == _P("run"),
        runs.c.bound.is_(sa.true()),
        runs.c.state.in_(sorted(ENDABLE)),
    )
    .with_for_update()
)
_MINE: Final = keepers.delete().where(
    keepers.c.user_id == _P("u"), keepers.c.run_id == _P("run"), keepers.c.owner == _P("me")
)
_ADD: Final = keepers.insert()
_OTHERS: Final = (
    sa.select(keepers.c.owner)
    .join(owners, owners.c.owner == keepers.c.owner)
    .where(keepers.c.user_id == _P("u"), keepers.c.run_id == _P("run"), owners.c.expires_at > DbNow())
    .limit(1)
)


def keep(connection: sa.Connection, user: UserKey, run_id: str, *, owner: str) -> bool:
    """See ``RunStore.keep``."""
    if connection.execute(_RUN, {"u": user, "run": run_id}).first() is None:
        return False
    connection.execute(_MINE, {"u": user, "run": run_id, "me": owner})
    connection.execute(_ADD, {"user_id": user, "run_id": run_id, "owner": owner})
    return True


def let_go(connection: sa.Connection, user: UserKey, run_id: str, *, owner: str) -> bool:
    """See ``RunStore.let_go``."""
    # The run's row is locked: of two that let go in one moment, the second knows that it is the last.
    live = connection.execute(_RUN, {"u": user, "run": run_id}).first() is not None
    mine = connection.execute(_MINE, {"u": user, "run": run_id, "me": owner}).rowcount == 1
    return live and mine and not is_kept(connection, user, run_id)


def is_kept(connection: sa.Connection, user: UserKey, run_id: str) -> bool:
    """See ``RunStore.is_kept``."""
    return connection.execute(_OTHERS, {"u": user, "run": run_id}).first() is not None
