"""Admission over real gRPC: limits, idempotency, pipelines that cannot run, what is not there yet."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import (
    AlreadyExistsError,
    CyclicPlanError,
    EnginesLimitError,
    IdempotencyConflictError,
    InvalidContextError,
    InvalidIdError,
    InvalidRequestError,
    NotWaitingError,
    PlanError,
    StoreUnavailableError,
    ThreadBusyError,
    UnendedRunsError,
    UnknownAgentError,
    UnknownRunError,
    UnmetRequirementError,
)
from carrel.v1 import execution_pb2 as pb
from tests.support.execution import Attempt, Up, World, answer, refusals, result, running_execution, stuck
from tests.support.identity import child_context, run_context, service_context, session_context


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running_execution(tmp_path) as running:
        running.agents.scripts["data"] = stuck
        yield running


async def test_of_a_hundred_requests_of_one_user_at_once_exactly_two_are_admitted(world: World) -> None:
    results = await asyncio.gather(*(world.execute(timeout=20) for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(item, pb.ExecutePipelineResponse) for item in results) == 2
    limits = refusals(results, EnginesLimitError)
    assert len(limits) == 98
    assert (limits[0].limit, limits[0].limit_value, limits[0].use) == ("max_engines_per_user", 2, 2)
    assert limits[0].retry_after_s > 0
    assert not (await world.execute(user="bob")).existing
    metrics = await world.stub.GetFactoryMetrics(pb.GetFactoryMetricsRequest(context=service_context()), timeout=5)
    assert (metrics.engines_active, metrics.total_users, metrics.concurrent_peak) == (3, 2, 3)
    assert metrics.refusals["ENGINES_LIMIT"] == 98
    assert set(metrics.factory_chain_metrics) == {
        "execution_engine",
        "agent_instance",
        "websocket_emitter",
        "bridge_integration",
    }


async def test_third_engine_is_refused_and_free_again_after_an_end(world: World) -> None:
    first = await world.execute()
    await world.execute()
    with pytest.raises(EnginesLimitError):
        await world.execute()
    await world.cancel(first.run.run_id)
    await world.execute()


async def test_a_claim_in_the_ticket_overrides_the_limits(world: World) -> None:
    await world.execute(limits={"max_engines_per_user": 1})
    with pytest.raises(EnginesLimitError):
        await world.execute(limits={"max_engines_per_user": 1})
    await world.execute(limits={"max_engines_per_user": 3})


async def test_sixth_unended_run_is_refused_while_the_log_has_not_acknowledged_the_ends(world: World) -> None:
    world.emitter.hold = lambda event: event.event_type == "run_completed"
    for _ in range(5):
        await world.cancel((await world.execute()).run.run_id)
    with pytest.raises(UnendedRunsError) as raised:
        await world.execute()
    assert (raised.value.limit_value, raised.value.use) == (5, 5)
    world.emitter.released.set()


async def test_reserved_engine_counts_and_takes_its_run(world: World) -> None:
    reserve = pb.CreateEngineRequest(context=session_context())
    engine = (await world.stub.CreateEngine(reserve, timeout=5)).engine
    assert engine.is_active
    await world.execute()
    with pytest.raises(EnginesLimitError):
        await world.stub.CreateEngine(reserve, timeout=5)
    run = (await world.execute(engine_id=engine.engine_id)).run
    assert run.engine_id == engine.engine_id
    listed = await world.stub.ListEngines(pb.ListEnginesRequest(context=session_context()), timeout=5)
    assert {item.run_id for item in listed.engines} >= {run.run_id}
    everybody = await world.stub.ListEngines(pb.ListEnginesRequest(context=service_context()), timeout=5)
    assert len(everybody.engines) == 2
    others = await world.stub.ListEngines(pb.ListEnginesRequest(context=session_context("bob")), timeout=5)
    assert not others.engines


async def test_same_client_ref_is_the_same_run_and_other_content_is_refused(world: World) -> None:
    first = await world.execute(client_ref="ref-1", params_json=b'{"a":1,"b":2}')
    again = await world.execute(client_ref="ref-1", params_json=b'{"b": 2, "a": 1}')
    assert again.existing
    assert again.run.run_id == first.run.run_id
    with pytest.raises(IdempotencyConflictError):
        await world.execute(client_ref="ref-1", params_json=b'{"a":2}')
    assert not (await world.execute(user="bob", client_ref="ref-1")).existing


async def test_taken_run_id_and_busy_thread_are_refused(world: World) -> None:
    await world.execute(run="run-x", thread="t-x")
    with pytest.raises(AlreadyExistsError):
        await world.execute(run="run-x", client_ref="other")
    with pytest.raises(ThreadBusyError) as raised:
        await world.execute(thread="t-x")
    assert raised.value.retryable


@pytest.mark.parametrize(
    ("pipeline", "error", "words"),
    [
        (["nobody"], UnknownAgentError, ["nobody", "data"]),
        (["report"], UnmetRequirementError, ["data", "optimization"]),
        (["optimization", "report"], UnmetRequirementError, ["data"]),
        (["left", "right"], CyclicPlanError, ["left", "right"]),
        (["left"], CyclicPlanError, ["left", "right"]),
        (["data", "data"], PlanError, ["data"]),
        (["supervisor", "data"], PlanError, ["supervisor"]),
    ],
)
async def test_pipeline_that_cannot_run_is_refused_with_the_names(
    world: World, pipeline: Sequence[str], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        await world.execute(pipeline=pipeline)
    assert all(word in str(raised.value) for word in words)
    listed = await world.stub.ListRuns(pb.ListRunsRequest(context=session_context()), timeout=5)
    assert not listed.runs


async def test_agent_that_appears_later_is_found_without_a_restart(world: World) -> None:
    world.agents.agents["late"] = ((), False)
    world.agents.scripts["late"] = answer({})
    await asyncio.sleep(0.6)  # names are asked about at most twice a second
    run = (await world.execute(pipeline=["late"])).run
    assert (await world.ended(run.run_id)).state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"params_json": b"[]"}, InvalidRequestError),
        ({"params_json": b"{"}, InvalidRequestError),
        ({"thread": "placeholder_1"}, InvalidIdError),
        ({"run": "none"}, InvalidIdError),
        ({"client_ref": "with space"}, InvalidRequestError),
    ],
)
async def test_bad_fields_are_refused_and_admit_nothing(
    world: World, fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await world.execute(**fields)
    listed = await world.stub.ListRuns(pb.ListRunsRequest(context=session_context()), timeout=5)
    assert not listed.runs


async def test_child_request_cannot_ask_for_a_run(world: World) -> None:
    child = child_context(run_context(run="run-c", request="req-c"), "step")
    with pytest.raises(InvalidContextError):
        await world.stub.ExecutePipeline(pb.ExecutePipelineRequest(context=child, pipeline=["data"]), timeout=5)


async def test_answer_to_a_run_that_does_not_wait_and_to_none_are_told_apart(world: World) -> None:
    world.agents.scripts["data"] = stuck
    run = (await world.execute()).run
    for run_id, error in ((run.run_id, NotWaitingError), ("run-none", UnknownRunError)):
        request = pb.ProvideInputRequest(context=session_context(), run_id=run_id, input_id="q", value_json=b"1")
        with pytest.raises(error):
            await world.stub.ProvideInput(request, timeout=5)


async def test_listings_page_and_refuse_foreign_tokens(world: World) -> None:
    world.agents.scripts["data"] = answer({})
    for n in range(3):
        await world.ended((await world.execute(thread=f"t{n}")).run.run_id)
    first = await world.stub.ListRuns(pb.ListRunsRequest(context=session_context(), page_size=2), timeout=5)
    rest = await world.stub.ListRuns(
        pb.ListRunsRequest(context=session_context(), page_size=2, page_token=first.next_page_token), timeout=5
    )
    assert len(first.runs) == 2
    assert len(rest.runs) == 1
    assert not rest.next_page_token
    for token in (first.next_page_token, "rubbish!", "W10"):
        with pytest.raises(InvalidRequestError):
            await world.stub.ListThreads(pb.ListThreadsRequest(context=session_context(), page_token=token), timeout=5)
    threads = await world.stub.ListThreads(pb.ListThreadsRequest(context=session_context()), timeout=5)
    assert [thread.thread_id for thread in threads.threads] == ["t2", "t1", "t0"]
    thread = await world.stub.GetThread(pb.GetThreadRequest(context=session_context(), thread_id="t0"), timeout=5)
    assert [message.role for message in thread.messages] == ["user", "assistant"]
    deleted = await world.stub.DeleteThread(
        pb.DeleteThreadRequest(context=session_context(), thread_id="t0"), timeout=5
    )
    assert deleted.deleted


async def test_a_thread_of_long_messages_is_read_page_by_page(world: World) -> None:
    world.agents.scripts["data"] = answer({})
    for _ in range(20):
        await world.ended((await world.execute(thread="t", message="x" * 250_000)).run.run_id)
    texts, token = [], ""
    while True:
        request = pb.GetThreadRequest(context=session_context(), thread_id="t", page_token=token)
        page = await world.stub.GetThread(request, timeout=5)
        texts += [message.text for message in page.messages]
        if not (token := page.next_page_token):
            break
    assert sum(map(len, texts)) >= 5_000_000


async def test_locked_store_refuses_admission_and_the_running_run_ends_well_once_it_is_free(world: World) -> None:
    go = asyncio.Event()

    async def waiting(attempt: Attempt) -> AsyncIterator[Up]:
        await go.wait()
        yield result({})

    world.agents.scripts["data"] = waiting
    run = (await world.execute()).run
    intruder = sqlite3.connect(world.folder / "data" / "runs.sqlite3", isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    go.set()
    with pytest.raises(StoreUnavailableError) as raised:
        await world.execute(user="bob", timeout=15)
    assert "locked" in raised.value.message
    assert (await world.run(run.run_id)).state == pb.RUN_STATE_RUNNING  # reading goes on
    intruder.execute("COMMIT")
    intruder.close()
    assert (await world.ended(run.run_id)).state == pb.RUN_STATE_SUCCEEDED
    assert not (await world.stub.ListRuns(pb.ListRunsRequest(context=session_context("bob")), timeout=5)).runs
