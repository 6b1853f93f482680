"""A run's way as operations of one transaction each: checkpoint, the end, leases. Each is a compare-and-set."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from services.execution.domain.outcome import last_events
from services.execution.domain.states import ENDABLE
from services.execution.models import UNENDED_STATES, RunRecord, RunRef, RunState, StageRecord, StageState
from services.execution.models_steps import Checkpoint, Finish, Finished
from services.execution.store_sql_reads import read_run
from services.execution.store_sql_rows import error_json, outbox_row, stage_of, stage_rows
from services.execution.tables import DbNow, engines, journal, messages, outbox, runs, stages, threads

__all__ = ["checkpoint", "close_run", "finish", "holds", "release_leases", "renew_leases", "take_over"]

_P: Final = sa.bindparam
_KEY: Final = sa.and_(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"), runs.c.fence == _P("f"))
_OF_RUN: Final = sa.and_(stages.c.user_id == _P("u"), stages.c.run_id == _P("run"))
_STAGE: Final = sa.and_(_OF_RUN, stages.c.stage_index == _P("i"))

# FOR UPDATE where there is such a thing; SQLite's writer is alone anyway.
_HELD: Final = sa.select(runs.c.state).where(_KEY).with_for_update()
_DONE_STAGE: Final = (
    stages.update()
    .where(_STAGE, stages.c.state == StageState.RUNNING)
    .values(state=StageState.SUCCEEDED, ended_at=_P("now"), answered_by=_P("answered"), result=_P("json"))
)
_BEGIN_STAGE: Final = (
    stages.update()
    .where(_STAGE, stages.c.state == StageState.PENDING)
    .values(state=StageState.RUNNING, attempt=1, started_at=_P("now"))
)
_SET_PARAMS: Final = runs.update().where(_KEY).values(params=_P("json"))
_ADD_STAGES: Final = stages.insert()

_FINISH: Final = (
    runs.update()
    .where(_KEY, runs.c.state.in_(sorted(ENDABLE)))
    .values(
        state=RunState.FINISHING,
        outcome=_P("outcome"),
        result=_P("json"),
        error=_P("failure"),
        ended_at=_P("now"),
        engine_id="",
    )
)
_STAGES: Final = sa.select(stages).where(_OF_RUN).order_by(stages.c.stage_index)
_END_STAGE: Final = (
    stages.update().where(_OF_RUN, stages.c.state == _P("was")).values(state=_P("becomes"), ended_at=_P("now"))
)
_FREE_ENGINE: Final = engines.delete().where(engines.c.user_id == _P("u"), engines.c.run_id == _P("run"))
_LAST_NUMBER: Final = sa.select(sa.func.max(outbox.c.number)).where(
    outbox.c.user_id == _P("u"), outbox.c.run_id == _P("run")
)
_ADD_OUTBOX: Final = outbox.insert()
_THREAD_OF: Final = (
    sa.select(threads.c.thread_id, threads.c.message_count)
    .join(runs, sa.and_(runs.c.user_id == threads.c.user_id, runs.c.thread_id == threads.c.thread_id))
    .where(_KEY)
)
_ADD_MESSAGE: Final = messages.insert()
_TOUCH_THREAD: Final = (
    threads.update()
    .where(threads.c.user_id == _P("u"), threads.c.thread_id == _P("thread"))
    .values(updated_at=_P("now"), message_count=_P("n"))
)
_CLOSE: Final = runs.update().where(_KEY, runs.c.state == RunState.FINISHING).values(state=runs.c.outcome)
_CLEAR_OUTBOX: Final = outbox.delete().where(outbox.c.user_id == _P("u"), outbox.c.run_id == _P("run"))

_CLEAR_JOURNAL: Final = journal.delete().where(journal.c.user_id == _P("u"), journal.c.run_id == _P("run"))

_UNENDED: Final = runs.c.state.in_(sorted(UNENDED_STATES))
_ORPHANS: Final = (
    sa.select(runs.c.user_id, runs.c.run_id)
    .where(
        _UNENDED,
        sa.or_(
            runs.c.lease_owner == _P("former"),
            sa.and_(runs.c.lease_expires_at <= DbNow(), runs.c.lease_owner != _P("owner")),
        ),
    )
    .order_by(runs.c.created_at)
    .limit(1000)
    .with_for_update(skip_locked=True)
)
_TAKE: Final = (
    runs.update()
    .where(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
    .values(
        lease_owner=_P("owner"),
        lease_expires_at=DbNow() + _P("lease", type_=sa.BigInteger),
        fence=runs.c.fence + 1,
    )
)
_RENEW: Final = (
    runs.update()
    .where(_UNENDED, runs.c.lease_owner == _P("owner"))
    .values(lease_expires_at=DbNow() + _P("lease", type_=sa.BigInteger))
)
_RELEASE: Final = runs.update().where(_UNENDED, runs.c.lease_owner == _P("owner")).values(lease_expires_at=0)


def holds(connection: sa.Connection, ref: RunRef, states: frozenset[RunState]) -> bool:
    """Whether the run's fence is still the caller's and its state is one of these; locks the run's row."""
    row = connection.execute(_HELD, _key(ref)).first()
    return row is not None and row.state in states


def checkpoint(connection: sa.Connection, ref: RunRef, step: Checkpoint, *, now: int) -> RunRecord | None:
    """See ``RunStore.checkpoint``."""
    if not holds(connection, ref, frozenset({RunState.RUNNING})):
        return None
    key = _key(ref)
    done = connection.execute(
        _DONE_STAGE, {**key, "i": step.index, "now": now, "answered": step.answered_by, "json": step.result}
    )
    if done.rowcount != 1:
        return None
    if step.added:
        known = read_run(connection, ref.user, ref.run_id)
        assert known is not None, "its row is locked"
        first = len(known.stages)
        added = [StageRecord(first + number, name) for number, name in enumerate(step.added)]
        connection.execute(_ADD_STAGES, stage_rows(known, added))
    if step.params is not None:
        connection.execute(_SET_PARAMS, {**key, "json": step.params})
    connection.execute(_BEGIN_STAGE, {**key, "i": step.index + 1, "now": now})
    return read_run(connection, ref.user, ref.run_id)


def finish(connection: sa.Connection, ref: RunRef, end: Finish, *, now: int) -> Finished | None:
    """See ``RunStore.finish``."""
    key = _key(ref)
    won = connection.execute(
        _FINISH,
        {
            **key,
            "outcome": end.outcome.value,
            "json": end.result,
            "failure": error_json(end.error),
            "now": now,
        },
    )
    if won.rowcount != 1:
        return None
    running = _end_stages(connection, key, end, now)
    connection.execute(_FREE_ENGINE, key)
    last = connection.execute(_LAST_NUMBER, key).scalar() or 0
    events = last_events(last + 1, end, running, now)
    connection.execute(_ADD_OUTBOX, [outbox_row(ref.user, ref.run_id, event) for event in events])
    if end.reply:
        _add_reply(connection, ref, end.reply, now)
    return Finished(events, now)


def close_run(connection: sa.Connection, ref: RunRef) -> bool:
    """See ``RunStore.close_run``."""
    if connection.execute(_CLOSE, _key(ref)).rowcount != 1:
        return False
    connection.execute(_CLEAR_OUTBOX, _key(ref))
    connection.execute(_CLEAR_JOURNAL, _key(ref))
    return True


def take_over(connection: sa.Connection, *, owner: str, lease: int, former: bool) -> tuple[RunRecord, ...]:
    """See ``RunStore.take_over``; ``former`` at a process's start, when what it once held is nobody's now."""
    orphans = connection.execute(_ORPHANS, {"owner": owner, "former": owner if former else ""}).all()
    taken = []
    for row in orphans:
        connection.execute(_TAKE, {"u": row.user_id, "run": row.run_id, "owner": owner, "lease": lease})
        taken.append(read_run(connection, row.user_id, row.run_id))
    return tuple(run for run in taken if run is not None)


def renew_leases(connection: sa.Connection, *, owner: str, lease: int) -> None:
    """See ``RunStore.renew_leases``."""
    connection.execute(_RENEW, {"owner": owner, "lease": lease})


def release_leases(connection: sa.Connection, *, owner: str) -> None:
    """See ``RunStore.release_leases``."""
    connection.execute(_RELEASE, {"owner": owner})


def _key(ref: RunRef) -> dict[str, Any]:
    return {"u": ref.user, "run": ref.run_id, "f": ref.fence}


def _end_stages(connection: sa.Connection, key: dict[str, Any], end: Finish, now: int) -> StageRecord | None:
    rows = [stage_of(row) for row in connection.execute(_STAGES, key)]
    running = next((stage for stage in rows if stage.state in (StageState.RUNNING, StageState.WAITING)), None)
    if end.outcome is RunState.SUCCEEDED:
        if running is not None:
            step = {"i": running.index, "now": now, "answered": end.answered_by, "json": end.result}
            connection.execute(_DONE_STAGE, {**key, **step})
        return running
    if running is not None:
        change = {"was": running.state.value, "becomes": StageState.FAILED.value, "now": now}
        connection.execute(_END_STAGE, {**key, **change})
    if any(stage.state is StageState.PENDING for stage in rows):
        change = {"was": StageState.PENDING.value, "becomes": StageState.SKIPPED.value, "now": now}
        connection.execute(_END_STAGE, {**key, **change})
    return running


def _add_reply(connection: sa.Connection, ref: RunRef, reply: str, now: int) -> None:
    row = connection.execute(_THREAD_OF, _key(ref)).first()
    if row is None:
        return
    number = row.message_count + 1
    connection.execute(_TOUCH_THREAD, {"u": ref.user, "thread": row.thread_id, "now": now, "n": number})
    connection.execute(
        _ADD_MESSAGE,
        {
            "user_id": ref.user,
            "thread_id": row.thread_id,
            "seq": number,
            "role": "assistant",
            "text": reply,
            "run_id": ref.run_id,
            "created_at": now,
        },
    )
