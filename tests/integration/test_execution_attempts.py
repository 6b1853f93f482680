"""Attempts that are lost, refused or never begun, and what the next one is given."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from carrel.errors import (
    CarrelError,
    DownstreamUnavailableError,
    DrainingError,
    QueueFullError,
    WorkerLostError,
    WorkersBusyError,
)
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import execution_pb2 as pb
from carrel.wire import error_to_proto
from services.execution.store_sql import SqlRunStore
from tests.conftest import Eventually
from tests.support.execution import Attempt, Script, Up, World, answer, result, running_execution
from tests.support.identity import service_context


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path) as running:
        yield running


def _lost() -> Up:
    return Up(result=ai.StageResult(error=error_to_proto(WorkerLostError("the worker died"))))


def in_turn(*scripts: Script) -> Script:
    """The first script for the first attempt, and so on; the last one for all that follow."""
    left = list(scripts)

    async def script(attempt: Attempt) -> AsyncIterator[Up]:
        async for up in (left.pop(0) if len(left) > 1 else left[0])(attempt):
            yield up

    return script


def refuses(error: CarrelError) -> Script:
    """A script that ends with this error before it has accepted."""

    async def script(attempt: Attempt) -> AsyncIterator[Up]:
        if attempt.start.attempt > 0:
            raise error
        yield result({})

    return script


async def loses_its_worker(attempt: Attempt) -> AsyncIterator[Up]:
    yield Up(accepted=ai.StageAccepted())
    yield Up(
        journal_entry=ai.JournalEntry(
            number=1, call_id="tool:count:abc:1", kind="tool", name="count", arguments_hash="abc", result_json=b"7"
        )
    )
    while (await attempt.messages.get()).WhichOneof("message") != "journal_stored":
        pass
    yield _lost()


async def test_an_attempt_ends_when_what_its_agent_waits_for_cannot_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> bool:
        raise QueueFullError("too many writes wait for the run store")

    monkeypatch.setattr(SqlRunStore, "save_journal", full)

    async def waits(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())
        yield Up(journal_entry=ai.JournalEntry(number=1, call_id="c1", kind="tool", name="count"))
        while attempt.messages.empty():
            await asyncio.sleep(0.02)
            yield Up(heartbeat=ai.Heartbeat())

    world.agents.scripts["data"] = waits
    run = await world.ended((await world.execute()).run.run_id)
    assert (run.state, run.error.code) == (pb.RUN_STATE_FAILED, "QUEUE_FULL")


async def test_a_journal_too_large_for_the_next_attempt_ends_the_run(world: World) -> None:
    async def much(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())
        for number in range(1, 6):
            entry = ai.JournalEntry(number=number, call_id=f"c{number}", kind="tool", name="count")
            entry.result_json = b'"' + b"y" * 1_000_000 + b'"'
            yield Up(journal_entry=entry)
        while (message := await attempt.messages.get()).journal_stored.through < 5:
            assert message.WhichOneof("message") == "journal_stored"
        yield _lost()

    world.agents.scripts["data"] = much
    run = await world.ended((await world.execute()).run.run_id)
    assert (run.state, run.error.code) == (pb.RUN_STATE_FAILED, "TOO_LARGE")
    assert len(world.agents.attempts) == 1


async def test_stage_whose_worker_died_is_tried_again_over_its_journal(world: World) -> None:
    world.agents.scripts["data"] = in_turn(loses_its_worker, answer({"rows": 3}))
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert run.stages[0].attempt == 2
    first, second = (attempt.start for attempt in world.agents.attempts)
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.fence > first.fence
    assert first.producer_id != second.producer_id
    assert not first.journal
    assert [(entry.call_id, entry.result_json) for entry in second.journal] == [("tool:count:abc:1", b"7")]
    log = world.emitter.log(run.run_id)
    assert [kind for kind, _ in log] == ["run_accepted", "run_attempt", "run_completed"]
    assert log[1][1] | {"reason": "worker_lost", "attempt": 2} == log[1][1]
    metrics = await world.stub.GetFactoryMetrics(pb.GetFactoryMetricsRequest(context=service_context()), timeout=5)
    assert metrics.attempts_lost == 1


async def test_last_attempt_is_told_so_and_its_loss_is_the_runs_failure(world: World) -> None:
    world.agents.scripts["data"] = in_turn(loses_its_worker)
    run = await world.ended((await world.execute()).run.run_id)
    assert run.state == pb.RUN_STATE_FAILED
    assert run.error.code == "WORKER_LOST"
    assert [attempt.start.last_attempt for attempt in world.agents.attempts] == [False, False, True]


async def test_run_attempt_is_in_the_log_before_the_next_attempt_begins(world: World) -> None:
    seen: list[list[str]] = []

    async def looks(attempt: Attempt) -> AsyncIterator[Up]:
        seen.append(world.emitter.kinds(attempt.context.run_id))
        yield result({})

    world.agents.scripts["data"] = in_turn(loses_its_worker, looks)
    await world.ended((await world.execute()).run.run_id)
    assert seen == [["run_accepted", "run_attempt"]]


@pytest.mark.parametrize(
    "error",
    [
        WorkersBusyError("full", retry_after_s=0.02),
        DrainingError("ending"),
        WorkerLostError("no worker can be started"),
    ],
)
async def test_attempt_that_was_refused_begins_nothing_and_costs_nothing(tmp_path: Path, error: CarrelError) -> None:
    refused = refuses(error)
    async with running_execution(tmp_path, max_attempts=1) as world:
        world.agents.scripts["data"] = in_turn(refused, refused, refused, answer({}))
        run = await world.ended((await world.execute()).run.run_id)
        assert run.state == pb.RUN_STATE_SUCCEEDED
        assert {attempt.start.attempt for attempt in world.agents.attempts} == {1}
        assert world.emitter.kinds(run.run_id) == ["run_accepted", "run_completed"]


async def test_attempt_that_broke_before_it_was_accepted_costs_no_try_but_its_number(tmp_path: Path) -> None:
    breaks = refuses(DownstreamUnavailableError("gone"))
    async with running_execution(tmp_path, max_attempts=1) as world:
        world.agents.scripts["data"] = in_turn(breaks, breaks, answer({}))
        run = await world.ended((await world.execute()).run.run_id)
        assert run.state == pb.RUN_STATE_SUCCEEDED
        assert [attempt.start.attempt for attempt in world.agents.attempts] == [1, 2, 3]
        assert all(attempt.start.last_attempt for attempt in world.agents.attempts)


async def test_run_that_is_cancelled_between_attempts_ends_cancelled_once(world: World, eventually: Eventually) -> None:
    world.agents.scripts["data"] = in_turn(loses_its_worker)
    world.emitter.hold = lambda event: event.event_type == "run_attempt"
    run_id = (await world.execute()).run.run_id
    await eventually(lambda: world.agents.attempts and world.agents.attempts[0].closed)
    await world.cancel(run_id)
    world.emitter.released.set()
    run = await world.ended(run_id)
    assert run.state == pb.RUN_STATE_CANCELLED
    kinds = world.emitter.kinds(run_id)
    assert kinds[-2:] == ["agent_error", "run_completed"]
    assert kinds.count("run_completed") == 1
    assert len(world.agents.attempts) == 1


async def test_use_of_models_is_counted_and_answered_with_what_is_left(tmp_path: Path) -> None:
    grants: list[ai.BudgetGrant] = []

    async def thinks(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted())
        yield Up(budget_use=ai.BudgetUse(model="m", input_tokens=30, output_tokens=12))
        while (message := await attempt.messages.get()).WhichOneof("message") != "budget_grant":
            pass
        grants.append(message.budget_grant)
        yield result({"left": message.budget_grant.tokens})

    async with running_execution(tmp_path, model_tokens_per_user=100) as world:
        world.agents.scripts["data"] = thinks
        run = await world.ended((await world.execute()).run.run_id)
        assert orjson.loads(run.result_json) == {"left": 58}
        assert grants[0].concurrency == 4
        assert grants[0].HasField("renews_at")
        assert world.agents.attempts[0].start.budget.tokens == 100
        await world.ended((await world.execute()).run.run_id)
        assert world.agents.attempts[1].start.budget.tokens == 58
        await world.ended((await world.execute(limits={"model_tokens_per_user": 1000})).run.run_id)
        assert world.agents.attempts[2].start.budget.tokens == 1000 - 84


async def test_attempts_that_were_given_back_by_who_ends_in_order_use_up_no_tries(world: World) -> None:
    async def given_back(attempt: Attempt) -> AsyncIterator[Up]:
        yield Up(accepted=ai.StageAccepted(instance_id="i-1"))
        raise DrainingError("agent_instance is shutting down", retry_after_s=0.0)

    world.agents.scripts["data"] = in_turn(*[given_back] * 4, answer({"rows": 3}))
    run = (await world.execute()).run
    ended = await world.ended(run.run_id, within=20)
    assert ended.state == pb.RUN_STATE_SUCCEEDED
    assert ended.stages[0].attempt == 5
    assert not any(attempt.start.last_attempt for attempt in world.agents.attempts)
