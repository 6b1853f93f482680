"""Waiting for a person as operations of one transaction each: the question, its answer, and its lapse."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from carrel.errors import NotWaitingError
from services.execution.domain.outcome import question_event
from services.execution.models import InputRecord, RunRecord, RunRef, RunState, StageState, UserKey
from services.execution.models_steps import Question, Step
from services.execution.store_sealing import seals_of
from services.execution.store_sql_damage import legible_run
from services.execution.store_sql_reads import read_input, read_run
from services.execution.store_sql_rows import input_row
from services.execution.store_sql_runs import add_events, free_engine, next_number, run_key
from services.execution.tables import inputs, runs, stages

__all__ = ["expired_inputs", "provide_input", "suspend"]

_P: Final = sa.bindparam
_RUN: Final = sa.and_(runs.c.user_id == _P("u"), runs.c.run_id == _P("run"))
_INPUT: Final = sa.and_(inputs.c.user_id == _P("u"), inputs.c.run_id == _P("run"), inputs.c.input_id == _P("input"))

_RUNNING: Final = (
    sa.select(runs.c.deadline_at)
    .where(_RUN, runs.c.fence == _P("f"), runs.c.state == RunState.RUNNING)
    .with_for_update()
)
_STAGE: Final = sa.select(stages.c.stage_index, stages.c.agent_name).where(
    stages.c.user_id == _P("u"), stages.c.run_id == _P("run"), stages.c.state == StageState.RUNNING
)
_SUSPEND_STAGE: Final = (
    stages.update()
    .where(stages.c.user_id == _P("u"), stages.c.run_id == _P("run"), stages.c.stage_index == _P("i"))
    .values(state=StageState.WAITING)
)
_SUSPEND: Final = (
    runs.update()
    .where(_RUN)
    .values(state=RunState.WAITING, engine_id="", deadline_at=0, time_left=_P("left"), waiting_input=_P("input"))
)
_DROP_INPUT: Final = inputs.delete().where(_INPUT)
_ADD_INPUT: Final = inputs.insert().values(
    number=sa.select(sa.func.coalesce(sa.func.max(inputs.c.number), 0) + 1)
    .where(inputs.c.user_id == _P("u"), inputs.c.run_id == _P("run"))
    .scalar_subquery()
)
_ASKED: Final = sa.select(runs.c.state, runs.c.waiting_input).where(_RUN).with_for_update()
_ANSWER: Final = inputs.update().where(_INPUT).values(value=_P("json"), answered_at=_P("now"))
_WAKE: Final = runs.update().where(_RUN).values(state=RunState.QUEUED, queued_at=_P("now"), waiting_input="")
_EXPIRED: Final = (
    sa.select(runs.c.user_id, runs.c.run_id)
    .join(
        inputs,
        sa.and_(
            inputs.c.user_id == runs.c.user_id,
            inputs.c.run_id == runs.c.run_id,
            inputs.c.input_id == runs.c.waiting_input,
        ),
    )
    .where(
        inputs.c.expires_at <= _P("now"),
        inputs.c.answered_at.is_(None),
        runs.c.state == RunState.WAITING,
        runs.c.lease_owner == _P("owner"),
    )
    .order_by(inputs.c.expires_at)
    .limit(500)
)


def suspend(connection: sa.Connection, ref: RunRef, question: Question, timeout_s: float, *, now: int) -> Step | None:
    """See ``RunStore.suspend``."""
    key = run_key(ref)
    held = connection.execute(_RUNNING, key).first()
    if held is None:
        return None
    stage = connection.execute(_STAGE, key).first()
    if stage is None:
        return None
    asked = InputRecord(
        input_id=question.input_id,
        stage_index=stage.stage_index,
        prompt=question.prompt,
        schema=question.schema,
        asked_at=now,
        expires_at=now + round(timeout_s * 1_000_000),
        arguments_hash=question.arguments_hash,
        tool_name=question.tool_name,
        arguments=question.arguments,
    )
    left = max(0, held.deadline_at - now)
    connection.execute(_SUSPEND, {**key, "left": left, "input": asked.input_id})
    connection.execute(_SUSPEND_STAGE, {**key, "i": stage.stage_index})
    free_engine(connection, ref)
    connection.execute(_DROP_INPUT, {**key, "input": asked.input_id})  # asked anew: the former answer is for nothing
    connection.execute(_ADD_INPUT, {**input_row(ref, asked, seals_of(connection)), "u": ref.user, "run": ref.run_id})
    event = question_event(next_number(connection, ref), asked, stage.agent_name)
    add_events(connection, ref, [event])
    run = read_run(connection, ref.user, ref.run_id)
    assert run is not None, "its row is locked"
    return Step(run, (event,))


def provide_input(
    connection: sa.Connection, user: UserKey, run_id: str, input_id: str, value: bytes, *, now: int
) -> RunRecord | None:
    """See ``RunStore.provide_input``."""
    key = {"u": user, "run": run_id}
    row = connection.execute(_ASKED, key).first()
    if row is None:
        return None
    asked = read_input(connection, user, run_id, input_id)
    if row.state == RunState.WAITING and asked is not None and row.waiting_input == input_id:
        if asked.expires_at <= now:
            raise NotWaitingError("the time to answer this question is over", run_id=run_id, input_id=input_id)
        sealed = seals_of(connection).seal("inputs.value", user, run_id, value)
        connection.execute(_ANSWER, {**key, "input": input_id, "json": sealed, "now": now})
        connection.execute(_WAKE, {**key, "now": now})
    elif asked is None or asked.value is None:
        raise NotWaitingError("the run does not wait for this input", run_id=run_id, input_id=input_id)
    elif asked.value != value:
        raise NotWaitingError("this question was answered otherwise", run_id=run_id, input_id=input_id)
    return read_run(connection, user, run_id)


def expired_inputs(connection: sa.Connection, *, owner: str, now: int) -> tuple[RunRecord, ...]:
    """See ``RunStore.expired_inputs``."""
    rows = connection.execute(_EXPIRED, {"owner": owner, "now": now}).all()
    found = [legible_run(connection, row.user_id, row.run_id) for row in rows]
    return tuple(run for run in found if run is not None)
