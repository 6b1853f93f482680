"""A second message on a busy thread, runs that wait for their turn, the limits on all, and runs bound to callers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from carrel.errors import ActiveRunsError, RateLimitError, ThreadBusyError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from tests.conftest import Eventually
from tests.support.execution import Attempt, Up, World, answer, asks, result, running_execution, stuck
from tests.support.identity import session_context


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path) as running:
        yield running


async def _history(world: World, thread: str, user: str = "alice") -> list[tuple[str, str]]:
    request = pb.GetThreadRequest(context=session_context(user), thread_id=thread)
    response = await world.stub.GetThread(request, timeout=5)
    return [(message.role, message.text) for message in response.messages]


class Gate:
    """A script that waits to be opened, and notes in which order the runs came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.came: list[str] = []

    async def __call__(self, attempt: Attempt) -> AsyncIterator[Up]:
        self.came.append(attempt.start.message)
        yield Up(accepted=ai.StageAccepted())
        await self.open.wait()
        yield result({"message": f"answer to {attempt.start.message}"})


async def test_enqueued_message_runs_after_the_one_before_with_its_answer_in_the_history(world: World) -> None:
    gate = world.agents.scripts["data"] = Gate()
    first = (await world.execute(thread="t1", message="one")).run.run_id
    enqueue: dict[str, Any] = {"thread": "t1", "strategy": pb.THREAD_STRATEGY_ENQUEUE}
    second = (await world.execute(message="two", **enqueue)).run
    third = (await world.execute(message="three", **enqueue)).run
    assert (second.state, second.engine_id) == (pb.RUN_STATE_QUEUED, "")
    assert (await world.metrics()).runs_queued == 2
    assert await _history(world, "t1") == [("user", "one")]
    gate.open.set()
    for run_id in (first, second.run_id, third.run_id):
        assert (await world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert world.emitter.kinds(run_id) == ["run_accepted", "run_completed"]
    assert gate.came == ["one", "two", "three"]
    assert [m.text for m in world.agents.attempts[2].start.history] == [
        "one",
        "answer to one",
        "two",
        "answer to two",
    ]
    assert await _history(world, "t1") == [
        (role, text) for n in ("one", "two", "three") for role, text in (("user", n), ("assistant", f"answer to {n}"))
    ]
    assert (await world.metrics()).runs_queued == 0


async def test_busy_thread_refuses_by_default_and_changes_nothing(world: World) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute(thread="t1")).run.run_id
    with pytest.raises(ThreadBusyError):
        await world.execute(thread="t1")
    assert (await world.run(run_id)).state == pb.RUN_STATE_RUNNING
    assert await _history(world, "t1") == [("user", "hello")]


@pytest.mark.parametrize("strategy", [pb.THREAD_STRATEGY_INTERRUPT, pb.THREAD_STRATEGY_ROLLBACK])
async def test_new_message_takes_the_place_of_all_that_the_thread_has(
    world: World, eventually: Eventually, strategy: pb.ThreadStrategy.ValueType
) -> None:
    world.agents.scripts["data"] = stuck
    running = (await world.execute(thread="t1", message="one")).run.run_id
    queued = (await world.execute(thread="t1", message="two", strategy=pb.THREAD_STRATEGY_ENQUEUE)).run.run_id
    await eventually(lambda: world.agents.attempts)
    world.agents.scripts["data"] = answer({"message": "answer"})
    latest = (await world.execute(thread="t1", message="three", strategy=strategy)).run.run_id
    for run_id in (running, queued):
        run = await world.ended(run_id)
        assert run.state == pb.RUN_STATE_CANCELLED
        assert world.emitter.kinds(run_id)[-1] == "run_completed"
    assert (await world.ended(latest)).state == pb.RUN_STATE_SUCCEEDED
    assert world.agents.attempts[0].closed, "the new one began while the former attempt went on"
    kept = [] if strategy == pb.THREAD_STRATEGY_ROLLBACK else [("user", "one")]
    assert await _history(world, "t1") == [*kept, ("user", "three"), ("assistant", "answer")]
    assert [(m.role, m.text) for m in world.agents.attempts[-1].start.history] == kept
    records = await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=session_context()), timeout=5)
    action = "run.interrupt" if strategy == pb.THREAD_STRATEGY_INTERRUPT else "run.rollback"
    assert {(record.action, record.run_id) for record in records.records} == {(action, running), (action, queued)}


async def test_former_attempt_has_ended_before_the_new_runs_first_stage_begins(
    world: World, eventually: Eventually
) -> None:
    ended: list[bool] = []

    async def looks(attempt: Attempt) -> AsyncIterator[Up]:
        ended.append(world.agents.attempts[0].closed)
        yield result({})

    world.agents.scripts["data"] = stuck
    await world.execute(thread="t1")
    await eventually(lambda: world.agents.attempts)
    world.agents.scripts["data"] = looks
    run = (await world.execute(thread="t1", strategy=pb.THREAD_STRATEGY_INTERRUPT)).run
    assert (await world.ended(run.run_id)).state == pb.RUN_STATE_SUCCEEDED
    assert ended == [True]


async def test_queued_run_waits_for_an_engine_and_another_user_does_not_wait_for_it(world: World) -> None:
    gate = world.agents.scripts["data"] = Gate()
    for n in range(2):
        await world.execute(message=f"one {n}")
    queued = (await world.execute(message="later", strategy=pb.THREAD_STRATEGY_ENQUEUE)).run
    assert queued.state == pb.RUN_STATE_QUEUED
    other = (await world.execute(user="bob", message="bob's")).run
    assert other.state == pb.RUN_STATE_RUNNING
    gate.open.set()
    assert (await world.ended(queued.run_id)).state == pb.RUN_STATE_SUCCEEDED
    assert (await world.ended(other.run_id, "bob")).state == pb.RUN_STATE_SUCCEEDED


async def test_queued_run_can_be_cancelled_and_survives_a_restart(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        world.agents.scripts["data"] = stuck
        first = (await world.execute(thread="t1")).run.run_id
        enqueue: dict[str, Any] = {"thread": "t1", "strategy": pb.THREAD_STRATEGY_ENQUEUE}
        second = (await world.execute(**enqueue)).run.run_id
        third = (await world.execute(**enqueue)).run.run_id
        await world.cancel(second)
        cancelled = await world.ended(second)
        assert cancelled.state == pb.RUN_STATE_CANCELLED
        assert world.emitter.kinds(second) == ["run_accepted", "run_completed"]
    async with running_execution(tmp_path, scripts={"data": answer({})}) as world:
        for run_id in (first, third):
            assert (await world.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert (await world.metrics()).runs_resumed == 2


async def test_waiting_run_keeps_its_thread_busy_for_the_queue(world: World) -> None:
    world.agents.scripts["data"] = asks("q1", {"message": "done"})
    first = (await world.execute(thread="t1")).run.run_id
    await world.reaches(first, pb.RUN_STATE_WAITING)
    world.agents.agents["next"] = ((), False)
    world.agents.scripts["next"] = answer({})
    await asyncio.sleep(0.6)  # names are asked about at most twice a second
    second = (await world.execute(thread="t1", pipeline=["next"], strategy=pb.THREAD_STRATEGY_ENQUEUE)).run.run_id
    await world.provide(first, "q1", 1)
    assert (await world.ended(second)).state == pb.RUN_STATE_SUCCEEDED
    assert [m.text for m in world.agents.attempts[-1].start.history] == ["hello", "done"]


async def test_full_deployment_refuses_or_queues_and_says_which_limit(tmp_path: Path) -> None:
    async with running_execution(tmp_path, max_active_runs=1) as world:
        gate = world.agents.scripts["data"] = Gate()
        await world.execute()
        with pytest.raises(ActiveRunsError) as raised:
            await world.execute(user="bob")
        assert raised.value.details["limit"] == "max_active_runs"
        queued = (await world.execute(user="bob", strategy=pb.THREAD_STRATEGY_ENQUEUE)).run
        gate.open.set()
        assert (await world.ended(queued.run_id, "bob")).state == pb.RUN_STATE_SUCCEEDED


async def test_user_who_is_too_quick_is_told_when_to_come_back_and_others_are_not(tmp_path: Path) -> None:
    async with running_execution(tmp_path, runs_per_minute_per_user=60, runs_burst_per_user=2) as world:
        world.agents.scripts["data"] = answer({})
        for _ in range(2):
            await world.ended((await world.execute()).run.run_id)
        with pytest.raises(RateLimitError) as raised:
            await world.execute()
        assert raised.value.retry_after_s
        await world.ended((await world.execute(user="bob")).run.run_id, "bob")
        await world.execute(limits={"runs_burst_per_user": 50, "runs_per_minute_per_user": 6000})


# Bound to the caller


async def test_bound_run_ends_when_its_caller_goes_away(world: World, eventually: Eventually) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute(bound_to_caller=True)).run.run_id
    await eventually(lambda: world.agents.attempts)
    keeper = world.keep(run_id)
    assert (await keeper.read()).run.state == pb.RUN_STATE_RUNNING
    keeper.cancel()
    run = await world.ended(run_id)
    assert run.state == pb.RUN_STATE_CANCELLED
    assert "gone away" in run.error.message
    await eventually(lambda: world.agents.attempts[0].closed)


async def test_bound_run_that_nobody_keeps_alive_is_cancelled(world: World) -> None:
    world.agents.scripts["data"] = stuck
    run_id = (await world.execute(bound_to_caller=True)).run.run_id
    keeper = world.keep(run_id, alive=False)  # somebody looks, and no more
    await keeper.read()
    keeper.cancel()
    assert (await world.run(run_id)).state == pb.RUN_STATE_RUNNING
    run = await world.ended(run_id, within=8)
    assert run.state == pb.RUN_STATE_CANCELLED
    assert "within 5 s" in run.error.message


async def test_bound_run_that_is_kept_alive_ends_as_others(world: World) -> None:
    gate = world.agents.scripts["data"] = Gate()
    run_id = (await world.execute(bound_to_caller=True)).run.run_id
    keeper = world.keep(run_id)
    state = (await keeper.read()).run.state
    gate.open.set()
    while (response := await keeper.read()) is not grpc.aio.EOF:
        state = response.run.state
    assert state == pb.RUN_STATE_SUCCEEDED


async def test_unbound_run_does_not_care_who_watches(world: World, eventually: Eventually) -> None:
    gate = world.agents.scripts["data"] = Gate()
    run_id = (await world.execute()).run.run_id
    keeper = world.keep(run_id)
    await keeper.read()
    keeper.cancel()
    await eventually(lambda: gate.came)
    gate.open.set()
    run = await world.ended(run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert orjson.loads(run.result_json) == {"message": "answer to hello"}
