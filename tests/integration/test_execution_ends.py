"""How runs end when something goes wrong: cancel, time, a lost or silent agent_instance, and races between them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from carrel.errors import UnknownRunError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.execution import Attempt, Up, World, answer, result, running_execution, silent, stuck
from tests.support.identity import run_context, service_context, session_context

# What a loaded machine may add to a time that is measured.
LOADED_S = 0.4
TRIED_THREE_TIMES = ["run_accepted", "run_attempt", "run_attempt"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path, silence_seconds=0.6) as running:
        yield running


async def test_cancel_ends_a_run_at_once_although_its_agent_ignores_it(world: World, eventually: Eventually) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute(pipeline=["data"])).run.run_id
    await eventually(lambda: world.agents.attempts)
    with Awake() as took:
        answered = await world.cancel(run_id, reason="changed my mind")
        assert answered.outcome == pb.RUN_STATE_CANCELLED
        run = await world.ended(run_id)
    assert took.seconds < 2.0  # an agent that is waited for takes its grace, 2 s, and more
    assert run.state == pb.RUN_STATE_CANCELLED
    assert run.error.code == "CANCELLED_RUN"
    assert "changed my mind" in run.error.message
    assert world.emitter.kinds(run_id) == ["run_accepted", "agent_error", "run_completed"]
    attempt = world.agents.attempts[0]
    message = await asyncio.wait_for(attempt.messages.get(), 10)
    assert message.WhichOneof("message") == "cancel"
    await eventually(lambda: attempt.closed)  # the grace is over: its stream is gone


async def test_cancel_asks_within_a_tenth_of_a_second_and_kills_within_one_with_default_settings(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with running_execution(tmp_path, cancel_grace_seconds=0.5) as world:
        world.agents.scripts["data"] = stuck
        run_id = (await world.execute()).run.run_id
        await eventually(lambda: world.agents.attempts)
        attempt = world.agents.attempts[0]
        with Awake() as took:
            await asyncio.gather(world.cancel(run_id), asyncio.wait_for(attempt.messages.get(), 10))
            assert took.seconds < 0.1 + LOADED_S
            await eventually(lambda: attempt.closed)
        assert took.seconds < 1.0 + LOADED_S


async def test_cancel_of_an_ended_run_changes_nothing(world: World) -> None:
    world.agents.scripts["data"] = answer({})
    run = await world.ended((await world.execute()).run.run_id)
    again = await world.cancel(run.run_id)
    assert again == run


async def test_cancel_against_completion_has_one_winner_and_one_terminal_event(world: World) -> None:
    world.agents.scripts["data"] = answer({})
    for _ in range(20):
        run_id = (await world.execute()).run.run_id
        answered = await world.cancel(run_id)
        run = await world.ended(run_id)
        assert run.state == run.outcome == answered.outcome
        kinds = world.emitter.kinds(run_id)
        assert kinds.count("run_completed") == 1
        assert kinds[-1] == "run_completed"
        status = world.emitter.log(run_id)[-1][1]["status"]
        assert pb.RunState.Value(f"RUN_STATE_{status}") == run.state


async def test_cancel_is_audited(world: World, eventually: Eventually) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute()).run.run_id
    await world.cancel(run_id)
    response = await world.stub.ListAuditRecords(
        pb.ListAuditRecordsRequest(context=session_context(), run_id=run_id), timeout=5
    )
    assert [record.action for record in response.records] == ["run.cancel"]


async def test_engine_that_uses_up_its_time_ends_the_run_as_timed_out(tmp_path: Path) -> None:
    async with running_execution(tmp_path, engine_timeout_seconds=0.4) as world:
        world.agents.scripts["data"] = stuck
        began = time.monotonic_ns()
        run = await world.ended((await world.execute()).run.run_id)
        took = time.monotonic_ns() - began
        assert run.state == pb.RUN_STATE_TIMED_OUT
        assert run.error.code == "ENGINE_TIMEOUT"
        assert world.emitter.kinds(run.run_id) == ["run_accepted", "agent_error", "run_completed"]
        metrics = await world.stub.GetFactoryMetrics(pb.GetFactoryMetricsRequest(context=service_context()), timeout=5)
        assert (metrics.timeouts, metrics.engines_active, metrics.engines_cleaned) == (1, 0, 1)
        assert metrics.runs_timed == 1
        assert metrics.run_parts[0].name == "admission"
        timing = (await world.run(run.run_id)).timing
        assert timing.complete
        whole = timing.total.ToNanoseconds()
        assert sum(part.time.ToNanoseconds() for part in timing.parts) == pytest.approx(whole, abs=100)
        assert 0.4e9 <= whole <= took


async def test_silent_agent_instance_counts_as_lost(world: World) -> None:
    world.agents.scripts["data"] = silent
    run = await world.ended((await world.execute()).run.run_id, within=8)
    assert run.state == pb.RUN_STATE_FAILED
    assert run.error.code == "AGENT_INSTANCE_LOST"
    assert run.error.retryable
    assert world.emitter.kinds(run.run_id) == [*TRIED_THREE_TIMES, "agent_error", "run_completed"]


async def test_heartbeats_keep_a_quiet_attempt_alive(world: World) -> None:
    async def quiet(attempt: Attempt) -> AsyncIterator[Up]:
        for _ in range(10):
            await asyncio.sleep(0.1)
            yield Up(heartbeat=ai.Heartbeat())
        yield result({})

    world.agents.scripts["data"] = quiet
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED


async def test_stream_that_breaks_off_ends_the_run(world: World) -> None:
    async def breaks(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())
        raise asyncio.CancelledError

    async def leaves(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())

    for script in (breaks, leaves):
        world.agents.scripts["data"] = script
        run = await world.ended((await world.execute()).run.run_id)
        assert run.state == pb.RUN_STATE_FAILED
        assert world.emitter.kinds(run.run_id) == [*TRIED_THREE_TIMES, "agent_error", "run_completed"]


async def test_late_result_of_a_cancelled_stage_changes_nothing(world: World, eventually: Eventually) -> None:
    async def polite(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())
        while (await attempt.messages.get()).WhichOneof("message") != "cancel":
            pass
        yield result({"late": True})

    world.agents.scripts["data"] = polite
    run_id = (await world.execute()).run.run_id
    await eventually(lambda: world.agents.attempts)
    await world.cancel(run_id)
    run = await world.ended(run_id)
    assert run.state == pb.RUN_STATE_CANCELLED
    assert not run.result_json


async def test_cleaning_up_an_engine_cancels_what_runs_on_it(world: World) -> None:
    world.agents.scripts["data"] = stuck
    run = (await world.execute()).run
    request = pb.CleanupEngineRequest(context=session_context(), engine_id=run.engine_id)
    assert (await world.stub.CleanupEngine(request, timeout=5)).cleaned
    assert not (await world.stub.CleanupEngine(request, timeout=5)).cleaned
    assert (await world.ended(run.run_id)).state == pb.RUN_STATE_CANCELLED


async def test_other_users_cannot_see_or_cancel_a_run(world: World) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute(run="run-shared", thread="t-shared")).run.run_id
    for call in (world.run, world.cancel):
        with pytest.raises(UnknownRunError):
            await call(run_id, "bob")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await world.watched(run_id, "bob")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    other = await world.execute(user="bob", run="run-shared", thread="t-shared")  # the same names, another run
    assert not other.existing
    assert (await world.run(run_id)).request_id != other.run.request_id
    stranger = run_context("alice", thread="t", run="run-other", request="req-other")
    with pytest.raises(UnknownRunError):  # a run ticket answers for its own run only
        await world.stub.GetRun(pb.GetRunRequest(context=stranger, run_id=run_id), timeout=5)
