"""Runs that wait for a person: what is held meanwhile, who may answer, and what the answer sets going."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from carrel.errors import InvalidInputError, NotWaitingError, UnknownRunError
from carrel.v1 import execution_pb2 as pb
from tests.conftest import Eventually
from tests.support.execution import World, answer, asks, running_execution, stuck
from tests.support.identity import session_context

SURE = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path) as running:
        running.agents.scripts |= {"data": asks("q1", {"rows": 3}, SURE), "optimization": answer({})}
        yield running


async def test_answer_lets_the_run_go_on_with_the_stage_that_asked(world: World) -> None:
    run_id = (await world.execute(pipeline=["data", "optimization"])).run.run_id
    waiting = await world.reaches(run_id, pb.RUN_STATE_WAITING)
    assert waiting.waiting_for.input_id == "q1"
    assert orjson.loads(waiting.waiting_for.schema_json) == SURE
    assert waiting.waiting_for.HasField("expires_at")
    assert not waiting.engine_id
    assert waiting.stages[0].state == pb.STAGE_STATE_WAITING
    await world.provide(run_id, "q1", {"sure": True})
    run = await world.ended(run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    second = world.agents.attempts[1].start
    assert (second.attempt, second.quiet_until_input) == (2, "q1")
    assert orjson.loads(second.inputs[0].value_json) == {"sure": True}
    kinds = world.emitter.kinds(run_id)
    assert kinds == ["run_accepted", "input_required", "run_attempt", "run_completed"]
    assert world.emitter.log(run_id)[2][1]["reason"] == "input_provided"


async def test_run_that_waits_holds_no_engine_and_no_worker(world: World) -> None:
    for _ in range(2):
        run_id = (await world.execute()).run.run_id
        await world.reaches(run_id, pb.RUN_STATE_WAITING)
    metrics = await world.metrics()
    assert (metrics.engines_active, metrics.runs_waiting) == (0, 2)
    assert all(attempt.closed or attempt.half_closed.is_set() for attempt in world.agents.attempts)
    world.agents.scripts["data"] = answer({})
    assert (await world.ended((await world.execute()).run.run_id)).state == pb.RUN_STATE_SUCCEEDED


async def test_answer_is_checked_and_may_be_repeated_but_not_changed(world: World) -> None:
    world.agents.scripts["optimization"] = stuck
    run_id = (await world.execute(pipeline=["data", "optimization"])).run.run_id
    await world.reaches(run_id, pb.RUN_STATE_WAITING)
    with pytest.raises(InvalidInputError, match=r"\$\.sure"):
        await world.provide(run_id, "q1", {"sure": "yes"})
    with pytest.raises(NotWaitingError):
        await world.provide(run_id, "q2", {"sure": True})
    with pytest.raises(UnknownRunError):
        await world.provide(run_id, "q1", {"sure": True}, "bob")
    await world.provide(run_id, "q1", {"sure": True})
    await world.provide(run_id, "q1", {"sure": True})
    with pytest.raises(NotWaitingError):
        await world.provide(run_id, "q1", {"sure": False})
    response = await world.stub.ListAuditRecords(
        pb.ListAuditRecordsRequest(context=session_context(), run_id=run_id), timeout=5
    )
    assert [(record.action, record.target) for record in response.records] == [("input.provide", "q1")]
    await world.cancel(run_id)


async def test_run_that_waits_can_be_cancelled(world: World) -> None:
    run_id = (await world.execute()).run.run_id
    await world.reaches(run_id, pb.RUN_STATE_WAITING)
    await world.cancel(run_id)
    assert (await world.ended(run_id)).state == pb.RUN_STATE_CANCELLED
    assert world.emitter.kinds(run_id)[:2] == ["run_accepted", "input_required"]
    assert world.emitter.kinds(run_id)[-1] == "run_completed"
    assert (await world.metrics()).runs_waiting == 0


async def test_question_that_nobody_answers_ends_the_run(tmp_path: Path) -> None:
    async with running_execution(tmp_path, input_timeout_seconds=0.3) as world:
        world.agents.scripts["data"] = asks("q1", {})
        run = await world.ended((await world.execute()).run.run_id, within=5)
        assert run.state == pb.RUN_STATE_TIMED_OUT
        assert run.error.code == "INPUT_EXPIRED"


async def test_schema_that_is_none_is_the_agents_failure(world: World) -> None:
    world.agents.scripts["data"] = asks("q1", {}, {"type": "wish"})
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_FAILED
    assert run.error.code == "AGENT_FAILED"
    assert world.emitter.kinds(run.run_id) == ["run_accepted", "agent_error", "run_completed"]


async def test_waiting_survives_a_restart_and_the_answer_then_sets_it_going(
    tmp_path: Path, eventually: Eventually
) -> None:
    script = asks("q1", {"rows": 3}, SURE)
    async with running_execution(tmp_path) as world:
        world.agents.scripts["data"] = script
        run_id = (await world.execute()).run.run_id
        await world.reaches(run_id, pb.RUN_STATE_WAITING)
    async with running_execution(tmp_path) as world:
        world.agents.scripts["data"] = script
        assert (await world.run(run_id)).state == pb.RUN_STATE_WAITING
        assert (await world.metrics()).runs_waiting == 1
        await world.provide(run_id, "q1", {"sure": True})
        run = await world.ended(run_id)
        assert run.state == pb.RUN_STATE_SUCCEEDED
        assert orjson.loads(run.result_json)["answer"] == {"sure": True}
        await eventually(lambda: "run_completed" in world.emitter.kinds(run_id))


async def test_answers_of_many_at_once_set_each_run_going(world: World) -> None:
    users = [f"user{n}" for n in range(10)]
    runs = {user: (await world.execute(user=user)).run.run_id for user in users}
    await asyncio.gather(*(world.reaches(run_id, pb.RUN_STATE_WAITING, user) for user, run_id in runs.items()))
    await asyncio.gather(*(world.provide(run_id, "q1", {"sure": True}, user) for user, run_id in runs.items()))
    ended = await asyncio.gather(*(world.ended(run_id, user) for user, run_id in runs.items()))
    assert {run.state for run in ended} == {pb.RUN_STATE_SUCCEEDED}
