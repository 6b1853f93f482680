"""How many runs have not ended, and since when: what operators look at to see that something is stuck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from services.execution.models import UNENDED_STATES, Micros, RunState
from services.execution.models_steps import Unended
from services.execution.tables import runs

__all__ = ["read_backlog"]

# A FINISHING run is in that state since its outcome, a QUEUED one since it was put there, where that is known.
_SINCE: Final = sa.case(
    (runs.c.state == RunState.FINISHING.value, sa.func.coalesce(runs.c.ended_at, runs.c.created_at)),
    (sa.and_(runs.c.state == RunState.QUEUED.value, runs.c.queued_at > 0), runs.c.queued_at),
    else_=runs.c.created_at,
)
_BACKLOG: Final = (
    sa.select(runs.c.state, sa.func.count(), sa.func.min(_SINCE))
    .where(runs.c.state.in_([state.value for state in UNENDED_STATES]))
    .group_by(runs.c.state)
)


def read_backlog(connection: sa.Connection, now: Micros) -> Mapping[RunState, Unended]:
    """See ``RunStore.backlog``."""
    found = {state: Unended(0, 0.0) for state in UNENDED_STATES}
    for state, count, since in connection.execute(_BACKLOG):
        found[RunState(state)] = Unended(count, max(0.0, (now - since) / 1_000_000))
    return found
