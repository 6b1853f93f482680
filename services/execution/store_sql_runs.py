"""A run's way as operations of one transaction each: checkpoint, new attempt, end. Each is a compare-and-set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa

from services.execution.domain.outcome import attempt_event, last_events
from services.execution.domain.states import ENDABLE
from services.execution.models import OutboxEvent, RunRecord, RunRef, RunState, StageRecord, StageState, UserKey
from services.execution.models_steps import Again, Checkpoint, Finish, Finished, Step
from services.execution.store_sealing import seals_of
from services.execution.store_sql_memory import keep_memory, settle_memories
from services.execution.store_sql_reads import read_run, run_from
from services.execution.store_sql_returning import TellingUpdate
from services.execution.store_sql_rows import error_json, outbox_row, sealed, stage_of, stage_rows
from services.execution.store_sql_threads import add_message
from services.execution.tables import engines, inputs, journal, memories, outbox, runs, stages

__all__ = [
    "add_events",
    "attempted",
    "begin_attempt",
    "checkpoint",
    "close_run",
    "finish",
    "free_engine",
    "holds",
    "next_number",
    "run_key",
]

_P: Final = sa.bindparam
_KEY: Final = sa.and_(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"), runs.c.fence == _P("f"))
_OF_RUN: Final = sa.and_(stages.c.user_id == _P("u"), stages.c.run_id == _P("run"))
_STAGE: Final = sa.and_(_OF_RUN, stages.c.stage_index == _P("i"))

# FOR UPDATE where there is such a thing; SQLite's writer is alone anyway.
_HELD: Final = sa.select(runs.c.state).where(_KEY).with_for_update()
_HELD_RUN: Final = sa.select(runs).where(_KEY).with_for_update()
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

_finish: Final = (
    runs.update()
    .where(_KEY, runs.c.state.in_(sorted(ENDABLE)))
    .values(
        state=RunState.FINISHING,
        outcome=_P("outcome"),
        result=_P("json"),
        error=_P("failure"),
        ended_at=_P("now"),
        engine_id="",
        waiting_input="",
    )
)
_STAGES: Final = sa.select(stages).where(_OF_RUN).order_by(stages.c.stage_index)
_DONE_RUN: Final = (
    stages.update()
    .where(_OF_RUN, stages.c.state == StageState.RUNNING)
    .values(state=StageState.SUCCEEDED, ended_at=_P("now"), answered_by=_P("answered"), result=_P("json"))
)
_END_STAGE: Final = (
    stages.update().where(_OF_RUN, stages.c.state == _P("was")).values(state=_P("becomes"), ended_at=_P("now"))
)
_FREE_ENGINE: Final = engines.delete().where(engines.c.user_id == _P("u"), engines.c.run_id == _P("run"))
_LAST_NUMBER: Final = sa.select(sa.func.max(outbox.c.number)).where(
    outbox.c.user_id == _P("u"), outbox.c.run_id == _P("run")
)
_ADD_OUTBOX: Final = outbox.insert()
_waits: Final = runs.alias("waits")
_waits_too: Final = sa.and_(
    _waits.c.state == RunState.QUEUED, sa.not_(sa.and_(_waits.c.user_id == _P("u"), _waits.c.run_id == _P("run")))
)
_FINISH: Final = TellingUpdate(
    _finish,
    _KEY,
    runs.c.thread_id,
    runs.c.max_active_total,
    _LAST_NUMBER.scalar_subquery().label("last_number"),
    sa.select(sa.literal(1))
    .where(_waits_too, _waits.c.user_id == _P("u"))
    .limit(1)
    .scalar_subquery()
    .label("own_waits"),
    # Few agents keep anything.
    sa.select(sa.literal(1))
    .where(memories.c.user_id == _P("u"), memories.c.run_id == _P("run"))
    .limit(1)
    .scalar_subquery()
    .label("has_kept"),
    sa.select(sa.literal(1)).where(_waits_too).limit(1).scalar_subquery().label("any_waits"),
)
_ALL_ENGINES: Final = (
    sa.select(sa.func.count())
    .select_from(engines)
    .where(sa.or_(engines.c.run_id != "", engines.c.expires_at > _P("now")))
)
_CLOSE: Final = TellingUpdate(
    runs.update().where(_KEY, runs.c.state == RunState.FINISHING).values(state=runs.c.outcome),
    _KEY,
    # Most runs have neither, and need no statements to remove them.
    sa.select(sa.literal(1))
    .where(journal.c.user_id == _P("u"), journal.c.run_id == _P("run"))
    .limit(1)
    .scalar_subquery()
    .label("has_journal"),
    sa.select(sa.literal(1))
    .where(inputs.c.user_id == _P("u"), inputs.c.run_id == _P("run"))
    .limit(1)
    .scalar_subquery()
    .label("has_inputs"),
)
_CLEAR_OUTBOX: Final = outbox.delete().where(outbox.c.user_id == _P("u"), outbox.c.run_id == _P("run"))

_CLEAR_JOURNAL: Final = journal.delete().where(journal.c.user_id == _P("u"), journal.c.run_id == _P("run"))
_CLEAR_INPUTS: Final = inputs.delete().where(inputs.c.user_id == _P("u"), inputs.c.run_id == _P("run"))
_DROP_JOURNAL: Final = _CLEAR_JOURNAL.where(journal.c.stage_index == _P("i"))
_NEXT_ATTEMPT: Final = (
    stages.update()
    .where(_STAGE, stages.c.state == StageState.RUNNING)
    .values(attempt=stages.c.attempt + 1, lost=stages.c.lost + _P("lost"))
)
_NEXT_FENCE: Final = runs.update().where(_KEY).values(fence=runs.c.fence + 1)


def holds(connection: sa.Connection, ref: RunRef, states: frozenset[RunState]) -> bool:
    """Whether the run's fence is still the caller's and its state is one of these; locks the run's row."""
    row = connection.execute(_HELD, run_key(ref)).first()
    return row is not None and row.state in states


def checkpoint(connection: sa.Connection, ref: RunRef, step: Checkpoint, *, now: int) -> RunRecord | None:
    """See ``RunStore.checkpoint``."""
    key = run_key(ref)
    held = connection.execute(_HELD_RUN, key).first()
    if held is None or held.state != RunState.RUNNING:
        return None
    seals = seals_of(connection)
    result = seals.seal("stages.result", ref.user, ref.run_id, step.result)
    done = connection.execute(
        _DONE_STAGE, {**key, "i": step.index, "now": now, "answered": step.answered_by, "json": result}
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
        params = seals.seal("runs.params", ref.user, ref.run_id, step.params)
        connection.execute(_SET_PARAMS, {**key, "json": params})
    if step.memory is not None:
        keep_memory(connection, ref, held.thread_id, step.memory, now=now)
    connection.execute(_DROP_JOURNAL, {**key, "i": step.index})
    connection.execute(_BEGIN_STAGE, {**key, "i": step.index + 1, "now": now})
    run = run_from(connection, held)
    return run if step.params is None else replace(run, params=step.params)


def begin_attempt(
    connection: sa.Connection, ref: RunRef, stage: int, why: Again, *, lost: bool, now: int
) -> Step | None:
    """See ``RunStore.begin_attempt``."""
    if not holds(connection, ref, frozenset({RunState.RUNNING})):
        return None
    key = run_key(ref)
    if connection.execute(_NEXT_ATTEMPT, {**key, "i": stage, "lost": int(lost)}).rowcount != 1:
        return None
    connection.execute(_NEXT_FENCE, key)
    return attempted(connection, ref.user, ref.run_id, stage, why, now)


def attempted(connection: sa.Connection, user: UserKey, run_id: str, stage: int, why: Again, now: int) -> Step:
    """The run as it now is, and ``run_attempt`` of the stage's attempt in the outbox."""
    run = read_run(connection, user, run_id)
    assert run is not None, "its row is locked"
    event = attempt_event(next_number(connection, run.ref), run.stages[stage], why, now)
    add_events(connection, run.ref, [event])
    return Step(run, (event,))


def next_number(connection: sa.Connection, ref: RunRef) -> int:
    """The number of the run's next own event."""
    last: int | None = connection.execute(_LAST_NUMBER, run_key(ref)).scalar()
    return (last or 0) + 1


def add_events(connection: sa.Connection, ref: RunRef, events: Sequence[OutboxEvent]) -> None:
    """Put events into the run's outbox."""
    seals = seals_of(connection)
    connection.execute(_ADD_OUTBOX, [outbox_row(ref.user, ref.run_id, event, seals) for event in events])


def finish(connection: sa.Connection, ref: RunRef, end: Finish, *, now: int) -> Finished | None:
    """See ``RunStore.finish``."""
    key, seals = run_key(ref), seals_of(connection)
    row = _FINISH.run(
        connection,
        {
            **key,
            "outcome": end.outcome.value,
            "json": sealed(seals, "runs.result", ref.user, ref.run_id, end.result),
            "failure": error_json(seals, "runs.error", ref.user, ref.run_id, end.error),
            "now": now,
        },
    )
    if row is None:
        return None
    running = _end_stages(connection, key, end, now)
    freed = free_engine(connection, ref)
    events = last_events((row.last_number or 0) + 1, end, running, now)
    add_events(connection, ref, events)
    succeeded = end.outcome is RunState.SUCCEEDED
    keeps = end.memory if succeeded else None
    if keeps is not None:
        keep_memory(connection, ref, row.thread_id, keeps, now=now)
    if keeps is not None or row.has_kept:
        settle_memories(connection, ref, row.thread_id, succeeded=succeeded)
    if end.reply:
        _add_reply(connection, ref, row.thread_id, end.reply, now)
    return Finished(events, now, _somebody_waits(connection, row, freed, now))


def free_engine(connection: sa.Connection, ref: RunRef) -> int:
    """Free the run's engine; how many it had: one or none."""
    return connection.execute(_FREE_ENGINE, run_key(ref)).rowcount


def close_run(connection: sa.Connection, ref: RunRef) -> bool:
    """See ``RunStore.close_run``."""
    closed = _CLOSE.run(connection, run_key(ref))
    if closed is None:
        return False
    connection.execute(_CLEAR_OUTBOX, run_key(ref))
    if closed.has_journal:
        connection.execute(_CLEAR_JOURNAL, run_key(ref))
    if closed.has_inputs:
        connection.execute(_CLEAR_INPUTS, run_key(ref))
    return True


def run_key(ref: RunRef) -> dict[str, Any]:
    """What the statements of a run's compare-and-sets are addressed with."""
    return {"u": ref.user, "run": ref.run_id, "f": ref.fence}


def _end_stages(connection: sa.Connection, key: dict[str, Any], end: Finish, now: int) -> StageRecord | None:
    """End what has not ended of the run's stages; the one that ran or waited, where that needs an event of its own."""
    if end.outcome is RunState.SUCCEEDED:
        result = sealed(seals_of(connection), "stages.result", key["u"], key["run"], end.result)
        connection.execute(_DONE_RUN, {**key, "now": now, "answered": end.answered_by, "json": result})
        return None
    seals = seals_of(connection)
    rows = [stage_of(row, seals) for row in connection.execute(_STAGES, key)]
    running = next((stage for stage in rows if stage.state in (StageState.RUNNING, StageState.WAITING)), None)
    if running is not None:
        change = {"was": running.state.value, "becomes": StageState.FAILED.value, "now": now}
        connection.execute(_END_STAGE, {**key, **change})
    if any(stage.state is StageState.PENDING for stage in rows):
        change = {"was": StageState.PENDING.value, "becomes": StageState.SKIPPED.value, "now": now}
        connection.execute(_END_STAGE, {**key, **change})
    return running


def _somebody_waits(connection: sa.Connection, row: Any, freed: int, now: int) -> bool:
    """Whether a QUEUED run may begin because of what has just become free."""
    if row.own_waits or not row.any_waits or not row.max_active_total:
        return bool(row.own_waits)
    left: int = connection.execute(_ALL_ENGINES, {"now": now}).scalar_one()
    return left + freed >= int(row.max_active_total)


def _add_reply(connection: sa.Connection, ref: RunRef, thread_id: str, reply: str, now: int) -> None:
    message = {
        "user_id": ref.user,
        "thread_id": thread_id,
        "role": "assistant",
        "text": reply,
        "run_id": ref.run_id,
        "created_at": now,
    }
    add_message(connection, message)
