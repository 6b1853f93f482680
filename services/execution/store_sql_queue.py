"""The queue: QUEUED runs begin, user by user, as engines become free. One transaction."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from carrel.ids import new_id
from services.execution.domain.states import ENDABLE
from services.execution.models import EngineRecord, RunState, StageState, UserKey
from services.execution.models_steps import Again, Step
from services.execution.store_sealing import seals_of
from services.execution.store_sql_admission import NEAR_LIMIT, count_engines, lock_totals, lock_user
from services.execution.store_sql_damage import left_alone, legible_run
from services.execution.store_sql_reads import read_run
from services.execution.store_sql_rows import engine_row
from services.execution.store_sql_runs import attempted
from services.execution.store_sql_threads import add_message
from services.execution.tables import engines, runs, stages, users

__all__ = ["promote"]

# What waiting leaves of a run's time is at least so much, or the whole where that is less.
_LEAST_TIME: Final = 60_000_000

_P: Final = sa.bindparam
_ACTIVE: Final = sa.or_(engines.c.run_id != "", engines.c.expires_at > _P("now"))
_ALL_ENGINES: Final = sa.select(sa.func.count()).select_from(engines).where(_ACTIVE)
_elder: Final = runs.alias("elder")
_ready: Final = (
    sa.select(
        runs.c.user_id,
        runs.c.run_id,
        runs.c.fence,
        runs.c.queued_at,
        runs.c.max_engines,
        runs.c.max_active_total,
        sa.func.row_number()
        .over(partition_by=runs.c.user_id, order_by=(runs.c.created_at, runs.c.place, runs.c.run_id))
        .label("turn"),
    )
    .where(
        runs.c.state == RunState.QUEUED,
        runs.c.lease_owner == _P("owner"),
        sa.or_(runs.c.max_active_total == 0, runs.c.max_active_total > _P("active")),
        sa.not_(
            sa.exists().where(
                _elder.c.user_id == runs.c.user_id,
                _elder.c.thread_id == runs.c.thread_id,
                _elder.c.state.in_(sorted(ENDABLE)),
                _elder.c.place < runs.c.place,
            )
        ),
    )
    .subquery("ready")
)
# Whose turn it is: the user who has waited longest since a run of theirs became QUEUED or had its turn, then those who
# have had theirs in this round. Without a look at turns of before, a user with a hundred runs would have all of them
# before somebody who came later.
_IN_TURN: Final = (
    sa.select(_ready)
    .join(users, users.c.user_id == _ready.c.user_id)
    .where(
        _ready.c.turn
        <= _ready.c.max_engines
        - sa.select(sa.func.count())
        .select_from(engines)
        .where(engines.c.user_id == _ready.c.user_id, _ACTIVE)
        .correlate(_ready)
        .scalar_subquery()
    )
    .order_by(
        _ready.c.turn,
        sa.case(
            (sa.and_(_ready.c.turn == 1, users.c.served_at > _ready.c.queued_at), users.c.served_at),
            else_=_ready.c.queued_at,
        ),
        _ready.c.user_id,
    )
    .limit(_P("limit", type_=sa.Integer))
)
_ANY: Final = sa.select(runs.c.run_id).where(runs.c.state == RunState.QUEUED).limit(1)
_KEY: Final = sa.and_(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
_QUEUED: Final = (
    sa.select(runs.c.thread_id, runs.c.message, runs.c.started_at, runs.c.time_left)
    .where(_KEY, runs.c.fence == _P("f"), runs.c.state == RunState.QUEUED, runs.c.lease_owner == _P("owner"))
    .with_for_update()
)
_BEGIN: Final = (
    runs.update()
    .where(_KEY)
    .values(
        state=RunState.RUNNING,
        engine_id=_P("engine"),
        started_at=_P("started"),
        deadline_at=_P("deadline"),
        fence=runs.c.fence + 1,
        queued_at=0,
        time_left=0,
    )
)
_ADD_ENGINE: Final = engines.insert()
_OF_RUN: Final = sa.and_(stages.c.user_id == _P("u"), stages.c.run_id == _P("run"))
_FIRST_STAGE: Final = (
    stages.update()
    .where(_OF_RUN, stages.c.stage_index == 0, stages.c.state == StageState.PENDING)
    .values(state=StageState.RUNNING, attempt=1, started_at=_P("now"))
)
_WAITING_STAGE: Final = sa.select(stages.c.stage_index).where(_OF_RUN, stages.c.state == StageState.WAITING)
_GO_ON: Final = (
    stages.update()
    .where(_OF_RUN, stages.c.stage_index == _P("i"))
    .values(state=StageState.RUNNING, attempt=stages.c.attempt + 1)
)
_SERVED: Final = users.update().where(users.c.user_id == _P("u")).values(served_at=_P("now"))


def promote(connection: sa.Connection, limit: int, *, owner: str, now: int, lifetime: int) -> tuple[Step, ...]:
    """See ``RunStore.promote``."""
    if limit < 1 or connection.execute(_ANY).first() is None:
        return ()
    active = int(connection.execute(_ALL_ENGINES, {"now": now}).scalar_one())
    most = limit + left_alone()
    chosen = connection.execute(_IN_TURN, {"owner": owner, "now": now, "active": active, "limit": most}).all()
    # In one order everywhere, so that two processes that promote never wait for each other crosswise.
    for user in sorted({row.user_id for row in chosen}):
        lock_user(connection, UserKey(user), now)
    if any(row.max_active_total and active + len(chosen) + NEAR_LIMIT >= row.max_active_total for row in chosen):
        lock_totals(connection)
        active = int(connection.execute(_ALL_ENGINES, {"now": now}).scalar_one())
    steps: list[Step] = []
    for row in chosen:
        if row.max_active_total and active + len(steps) >= row.max_active_total:
            continue
        if count_engines(connection, UserKey(row.user_id), now) < row.max_engines:
            step = _begin(connection, row, owner=owner, now=now, lifetime=lifetime)
            steps += [step] if step is not None else []
    return tuple(steps)


def _begin(connection: sa.Connection, row: Any, *, owner: str, now: int, lifetime: int) -> Step | None:
    key = {"u": row.user_id, "run": row.run_id}
    run = connection.execute(_QUEUED, {**key, "f": row.fence, "owner": owner}).first()
    # Before anything is written: what can't be read would undo the turn of all others.
    if run is None or legible_run(connection, row.user_id, row.run_id) is None:  # ended, or taken over, meanwhile
        return None
    fresh = run.started_at is None
    deadline = now + (lifetime if fresh else max(run.time_left, min(_LEAST_TIME, lifetime)))
    engine = EngineRecord(new_id("eng"), row.user_id, row.run_id, now, deadline)
    begun = {"engine": engine.engine_id, "started": now if fresh else run.started_at, "deadline": deadline}
    connection.execute(_BEGIN, {**key, **begun})
    connection.execute(_ADD_ENGINE, engine_row(engine))
    connection.execute(_SERVED, {"u": row.user_id, "now": now})
    if not fresh:
        stage = int(connection.execute(_WAITING_STAGE, key).scalar_one())
        connection.execute(_GO_ON, {**key, "i": stage})
        return attempted(connection, row.user_id, row.run_id, stage, Again.INPUT_PROVIDED, now)
    connection.execute(_FIRST_STAGE, {**key, "now": now})
    _join_thread(connection, key, run, now)
    begun_run = read_run(connection, row.user_id, row.run_id)
    assert begun_run is not None, "its row is locked"
    return Step(begun_run)


def _join_thread(connection: sa.Connection, key: dict[str, Any], run: Any, now: int) -> None:
    message = {
        "user_id": key["u"],
        "thread_id": run.thread_id,
        "role": "user",
        "text": seals_of(connection).open_text("runs.message", key["u"], key["run"], run.message),
        "run_id": key["run"],
        "created_at": now,
    }
    add_message(connection, message)
