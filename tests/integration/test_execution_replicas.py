"""Several executions on one PostgreSQL database: what one is asked reaches the run that another holds, at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from carrel.errors import ActiveRunsError, EnginesLimitError
from carrel.v1 import execution_pb2 as pb
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.rpc.channel import open_channel
from services.execution.domain.services import RunOptions
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.execution import World, answer, asks, neighbours, refusals, running_replicas, stuck
from tests.support.identity import identity
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.container, pytest.mark.timeout(150)]
KINDS = ["run_accepted", "agent_error", "run_completed"]


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database."""
    name = await postgres.create()
    yield postgres.url(name)
    await postgres.drop(name)


@pytest.fixture
async def pair(database: str, tmp_path: Path) -> AsyncIterator[list[World]]:
    """Two replicas."""
    async with running_replicas(tmp_path, database) as worlds:
        yield worlds


@pytest.fixture
async def unlooking(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[World]]:
    """Two replicas that hardly ever look by themselves for what others decide."""
    monkeypatch.setattr("services.execution.config.RunOptions", partial(RunOptions, decided_told_s=60.0))
    async with running_replicas(tmp_path, database) as worlds:
        yield worlds


async def test_cancel_through_another_replica_reaches_the_worker_at_once(
    unlooking: list[World], eventually: Eventually
) -> None:
    one, two = unlooking
    one.agents.scripts["data"] = stuck
    run_id = (await one.execute()).run.run_id
    await eventually(lambda: one.agents.attempts)
    with Awake() as took:
        told = asyncio.ensure_future(one.agents.attempts[0].messages.get())
        run = await two.cancel(run_id)
        assert run.state in (pb.RUN_STATE_FINISHING, pb.RUN_STATE_CANCELLED)
        assert (await asyncio.wait_for(told, 10)).cancel.grace.ToTimedelta().total_seconds() == pytest.approx(0.3)
    assert (await one.ended(run_id)).state == pb.RUN_STATE_CANCELLED
    assert (await two.run(run_id)).state == pb.RUN_STATE_CANCELLED
    await eventually(lambda: one.agents.attempts[0].closed)
    assert one.emitter.kinds(run_id) == KINDS
    assert (await one.metrics()).engines_active == 0
    # 100 ms on a machine with nothing else to do; polling alone would take a minute.
    assert took.seconds < 2


async def test_watch_at_another_replica_tells_every_state_without_polling(
    pair: list[World], eventually: Eventually
) -> None:
    one, two = pair
    one.agents.scripts["data"] = asks("inp-1", {"ok": 1})
    run_id = (await one.execute()).run.run_id
    with Awake() as took:
        waiting = await two.reaches(run_id, pb.RUN_STATE_WAITING)
    assert took.seconds < 4  # its poll is five seconds
    assert waiting.waiting_for.input_id == "inp-1"
    with Awake() as took:
        watching = asyncio.ensure_future(two.watched(run_id))
        await one.provide(run_id, "inp-1", True)
        states = [run.state for run in await watching]
    assert took.seconds < 4
    assert states[0] == pb.RUN_STATE_WAITING
    assert states[-1] == pb.RUN_STATE_SUCCEEDED


async def test_answer_through_another_replica_lets_the_run_go_on_where_it_is_held(
    pair: list[World], eventually: Eventually
) -> None:
    one, two = pair
    one.agents.scripts["data"] = asks("inp-1", {"ok": 1})
    run_id = (await one.execute()).run.run_id
    await one.reaches(run_id, pb.RUN_STATE_WAITING)
    with Awake() as took:
        await two.provide(run_id, "inp-1", "yes")
        assert (await two.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
    assert took.seconds < 3
    assert one.agents.attempts[-1].start.attempt == 2


async def test_what_another_replica_frees_lets_a_queued_run_begin(pair: list[World], eventually: Eventually) -> None:
    one, two = pair
    one.agents.scripts["data"] = stuck
    first = (await one.execute(thread="t")).run.run_id
    await eventually(lambda: len(one.agents.attempts) == 1)
    queued = (await two.execute(thread="t", strategy=pb.THREAD_STRATEGY_ENQUEUE)).run
    assert queued.state == pb.RUN_STATE_QUEUED
    one.agents.scripts["data"] = answer({"ok": 1})
    await two.cancel(first)
    assert (await one.ended(queued.run_id)).state == pb.RUN_STATE_SUCCEEDED


async def test_interrupt_at_another_replica_ends_the_run_and_its_agent_is_told(
    pair: list[World], eventually: Eventually
) -> None:
    one, two = pair
    one.agents.scripts["data"] = stuck
    first = (await one.execute(thread="t")).run.run_id
    await eventually(lambda: len(one.agents.attempts) == 1)
    one.agents.scripts["data"] = answer({"ok": 2})
    second = (await two.execute(thread="t", strategy=pb.THREAD_STRATEGY_INTERRUPT)).run.run_id
    message = await asyncio.wait_for(one.agents.attempts[0].messages.get(), 5)
    assert message.HasField("cancel")
    assert (await one.ended(first)).state == pb.RUN_STATE_CANCELLED
    assert (await one.ended(second)).state == pb.RUN_STATE_SUCCEEDED
    assert one.emitter.kinds(first) == KINDS


async def test_limits_hold_across_replicas(pair: list[World], eventually: Eventually) -> None:
    one, two = pair
    one.agents.scripts["data"] = stuck
    asked = [world.execute(limits={"max_engines_per_user": 2}) for world in (one, two) for _ in range(10)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert len(refusals(results, EnginesLimitError)) == 18
    admitted = [result.run.run_id for result in results if isinstance(result, pb.ExecutePipelineResponse)]
    await asyncio.gather(*(two.cancel(run_id) for run_id in admitted))
    await asyncio.gather(*(one.ended(run_id) for run_id in admitted))


async def test_total_of_all_users_holds_across_replicas(database: str, tmp_path: Path) -> None:
    async with running_replicas(tmp_path, database, max_active_runs=3, scripts={"data": stuck}) as worlds:
        asked = [world.execute(user=f"user-{n}") for n in range(8) for world in worlds]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert len(refusals(results, ActiveRunsError)) == 13


async def test_runs_of_a_replica_that_drains_are_taken_up_by_another(
    database: str, tmp_path: Path, eventually: Eventually
) -> None:
    short: dict[str, Any] = {"count": 1, "lease_seconds": 1.5}
    async with running_replicas(tmp_path / "a", database, scripts={"data": stuck}, **short) as (one,):
        run_id = (await one.execute()).run.run_id
        await eventually(lambda: one.agents.attempts)
    async with running_replicas(tmp_path / "b", database, scripts={"data": answer({"ok": 1})}, **short) as (two,):
        assert (await two.ended(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert two.agents.attempts[0].start.attempt == 2


async def test_bound_run_ends_when_its_caller_leaves_another_replica(pair: list[World], eventually: Eventually) -> None:
    one, two = pair
    one.agents.scripts["data"] = stuck
    run_id = (await one.execute(bound_to_caller=True)).run.run_id
    first, second = two.keep(run_id), one.keep(run_id)
    await asyncio.gather(first.read(), second.read())
    second.cancel()
    await asyncio.sleep(0.2)
    assert (await one.run(run_id)).state == pb.RUN_STATE_RUNNING
    first.cancel()
    ended = await one.ended(run_id)
    assert ended.state == pb.RUN_STATE_CANCELLED
    assert "its caller has gone away" in ended.error.message


async def test_bound_run_whose_keeper_drains_goes_on_when_the_caller_comes_back(
    database: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with running_replicas(tmp_path / "a", database, count=1, scripts={"data": stuck}) as (one,):
        async with running_replicas(tmp_path / "b", database, count=1) as (two,):
            run_id = (await one.execute(bound_to_caller=True)).run.run_id
            await two.keep(run_id).read()
        again = one.keep(run_id)
        await again.read()
        await asyncio.sleep(0.5)
        assert (await one.run(run_id)).state == pb.RUN_STATE_RUNNING
        again.cancel()
        assert (await one.ended(run_id)).state == pb.RUN_STATE_CANCELLED


@pytest.mark.slow
async def test_bound_run_that_nobody_keeps_at_any_replica_is_cancelled(pair: list[World]) -> None:
    one, two = pair
    one.agents.scripts["data"] = stuck
    run_id = (await one.execute(bound_to_caller=True)).run.run_id
    ended = await two.ended(run_id, within=15)
    assert ended.state == pb.RUN_STATE_CANCELLED
    assert "nobody kept it alive" in ended.error.message


# Processes of their own


async def test_runs_of_a_killed_process_are_taken_over_within_the_lease_and_complete(
    database: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with neighbours() as (agents, agents_at, emitter, emitter_at), AsyncExitStack() as stack:
        agents.scripts["data"] = stuck
        started = await asyncio.gather(
            *(
                stack.enter_async_context(execution_process(tmp_path / name, database, agents_at, emitter_at))
                for name in ("0", "1")
            )
        )
        stubs = [pb_grpc.ExecutionServiceStub(channel) for _, channel in started]
        one, two = (World(agents, emitter, stub, "", tmp_path) for stub in stubs)
        running = (await one.execute(pipeline=["data", "optimization"])).run.run_id
        agents.scripts["optimization"] = answer({"saved": 1})
        other = (await two.execute(user="bob")).run.run_id
        queued = (await one.execute(thread="t")).run
        behind = (await one.execute(thread="t", strategy=pb.THREAD_STRATEGY_ENQUEUE)).run.run_id
        await eventually(lambda: len(agents.attempts) == 3)
        agents.scripts["data"] = answer({"rows": 1})
        watching = [asyncio.ensure_future(two.ended(run_id, within=30)) for run_id in (running, queued.run_id, behind)]
        with Awake() as took:
            started[0][0].kill()
            ended = await asyncio.gather(*watching)
        # The lease is 3 s, and looked at every second.
        assert took.seconds < 15
        assert [run.state for run in ended] == [pb.RUN_STATE_SUCCEEDED] * 3
        assert [stage.attempt for stage in ended[0].stages] == [2, 1]
        assert emitter.kinds(running) == ["run_accepted", "run_attempt", "run_completed"]
        assert (await two.run(other, "bob")).state == pb.RUN_STATE_RUNNING
        await two.cancel(other, "bob")
        assert (await two.ended(other, "bob")).state == pb.RUN_STATE_CANCELLED


async def test_a_process_that_stood_still_finds_its_runs_taken_and_goes_on_with_others(
    database: str, tmp_path: Path, eventually: Eventually
) -> None:
    async with neighbours() as (agents, agents_at, emitter, emitter_at), AsyncExitStack() as stack:
        agents.scripts["data"] = stuck
        started = await asyncio.gather(
            *(
                stack.enter_async_context(execution_process(tmp_path / name, database, agents_at, emitter_at))
                for name in ("0", "1")
            )
        )
        stubs = [pb_grpc.ExecutionServiceStub(channel) for _, channel in started]
        one, two = (World(agents, emitter, stub, "", tmp_path) for stub in stubs)
        process = started[0][0]
        run_id = (await one.execute()).run.run_id
        await eventually(lambda: agents.attempts)
        agents.scripts["data"] = answer({"rows": 1})
        process.send_signal(signal.SIGSTOP)
        try:
            assert (await two.ended(run_id, within=20)).state == pb.RUN_STATE_SUCCEEDED
        finally:
            process.send_signal(signal.SIGCONT)
        # Its attempt is told to end, and nothing that it still believes changes the run or its log.
        await eventually(lambda: agents.attempts[0].closed, within=10)
        assert (await one.run(run_id)).state == pb.RUN_STATE_SUCCEEDED
        assert emitter.kinds(run_id) == ["run_accepted", "run_attempt", "run_completed"]
        again = (await one.execute()).run.run_id
        assert (await one.ended(again)).state == pb.RUN_STATE_SUCCEEDED


@asynccontextmanager
async def execution_process(
    folder: Path, store_url: str, agents_at: str, emitter_at: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, aio.Channel]]:
    """`python -m services.execution`, and a channel to it; killed at the end if it is there still."""
    folder.mkdir(parents=True)
    jwks, _, key = identity().write(folder / "keys")
    environment = {
        **os.environ,
        "CARREL_STATE_DIR": str(folder),
        "CARREL_TICKET_JWKS": str(jwks),
        "CARREL_READY_FILE": str(folder / "ready"),
        "CARREL_EXECUTION_LISTEN": "127.0.0.1:0",
        "CARREL_EXECUTION_AGENT_INSTANCE": agents_at,
        "CARREL_EXECUTION_EMITTER": emitter_at,
        "CARREL_EXECUTION_TICKET_KEY": str(key),
        "CARREL_EXECUTION_STORE_URL": store_url,
        "CARREL_EXECUTION_LEASE_SECONDS": "3",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "services.execution", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while not (folder / "ready").exists():
                assert process.returncode is None
                await asyncio.sleep(0.02)
        async with open_channel((folder / "ready").read_text().strip()) as channel:
            yield process, channel
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
