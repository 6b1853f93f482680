"""execution before two agent_instances: attempts go where workers are free, elsewhere when one refuses or is gone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import DrainingError, WorkersBusyError
from carrel.v1 import agent_instance_pb2 as ai
from carrel.v1 import agent_instance_pb2_grpc as ai_grpc
from carrel.v1 import emitter_pb2_grpc
from carrel.v1 import execution_pb2 as pb
from carrel.v1 import execution_pb2_grpc as pb_grpc
from servicekit.lifecycle import Starter
from servicekit.rpc.channel import open_channel
from services.execution.app import app
from tests.conftest import Eventually
from tests.support.execution import (
    Attempt,
    LogEmitter,
    ScriptedAgents,
    Up,
    World,
    answer,
    execution_settings,
    stuck,
)
from tests.support.identity import identity
from tests.support.rpc import Rpc, serving


class Agents(ScriptedAgents):
    """Says how busy it is."""

    def __init__(self) -> None:
        super().__init__(identity().verifier())
        self.load = ai.GetLoadResponse(active=0, waiting=0, capacity=10)
        self.asked = 0

    async def GetLoad(self, request: ai.GetLoadRequest, context: Any) -> ai.GetLoadResponse:
        self.asked += 1
        return self.load


@asynccontextmanager
async def agents_at(agents: Agents, listen: str = "127.0.0.1:0") -> AsyncIterator[Rpc]:
    add = ai_grpc.add_AgentInstanceServiceServicer_to_server
    async with serving([(add, agents, "carrel.v1.AgentInstanceService")], listen=listen) as rpc:
        yield rpc


class Pair:
    """Two scripted agent_instances and the execution before them."""

    def __init__(self) -> None:
        self.agents = [Agents(), Agents()]
        self.servers: list[AsyncExitStack] = []
        self.addresses: list[str] = []
        self.world: Any = None

    async def start(self, index: int) -> None:
        stack = AsyncExitStack()
        listen = self.addresses[index] if index < len(self.addresses) else "127.0.0.1:0"
        rpc = await stack.enter_async_context(agents_at(self.agents[index], listen))
        self.servers[index : index + 1] = [stack]
        self.addresses[index : index + 1] = [rpc.address]

    def attempts(self) -> list[int]:
        return [len(agents.attempts) for agents in self.agents]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair, emitter = Pair(), LogEmitter(identity().verifier())
    add = emitter_pb2_grpc.add_EmitterServiceServicer_to_server
    async with serving([(add, emitter, "carrel.v1.EmitterService")]) as emitter_rpc:
        for index in range(2):
            await pair.start(index)
        settings = execution_settings(tmp_path, ",".join(pair.addresses), emitter_rpc.address)
        async with app(settings, Starter("execution")) as running:
            await running.start()
            async with open_channel(running.address) as channel:
                stub = pb_grpc.ExecutionServiceStub(channel)
                pair.world = World(pair.agents[0], emitter, stub, running.address, tmp_path)
                yield pair
            await running.drain()
        for server in pair.servers:
            await server.aclose()


async def run_one(pair: Pair, user: str = "alice") -> pb.Run:
    run = (await pair.world.execute(user=user)).run
    ended: pb.Run = await pair.world.ended(run.run_id, user)
    return ended


async def test_attempts_go_where_workers_are_free(pair: Pair, eventually: Eventually) -> None:
    for agents in pair.agents:
        agents.scripts["data"] = answer({"rows": 3})
    pair.agents[0].load.active = 9
    asked = [agents.asked for agents in pair.agents]
    await eventually(lambda: all(a.asked > n + 1 for a, n in zip(pair.agents, asked, strict=True)), within=5)
    for _ in range(4):
        assert (await run_one(pair)).state == pb.RUN_STATE_SUCCEEDED
    assert pair.attempts() == [0, 4]


async def test_runs_at_the_same_time_are_spread_and_each_row_says_where(
    pair: Pair, tmp_path: Path, eventually: Eventually
) -> None:
    for agents in pair.agents:
        agents.scripts["data"] = stuck
    runs = [(await pair.world.execute(user=f"u{number}")).run.run_id for number in range(6)]
    for number, run_id in enumerate(runs):
        await pair.world.reaches(run_id, pb.RUN_STATE_RUNNING, f"u{number}")
    await eventually(lambda: sum(pair.attempts()) == 6, within=5)
    assert min(pair.attempts()) >= 2
    for number, run_id in enumerate(runs):
        await pair.world.cancel(run_id, f"u{number}")
    with closing(sqlite3.connect(tmp_path / "data" / "runs.sqlite3")) as database:
        places = [str(row[0]) for row in database.execute("SELECT agent_instance FROM runs")]
    assert set(places) == set(pair.addresses)
    assert [places.count(address) for address in pair.addresses] == pair.attempts()


@pytest.mark.parametrize("error", [WorkersBusyError("full"), DrainingError("ending")], ids=["full", "draining"])
async def test_one_that_refuses_is_left_for_the_other(pair: Pair, error: Exception) -> None:
    async def refuse(attempt: Attempt) -> AsyncIterator[Up]:
        if attempt.start.attempt:
            raise error
        yield Up()

    pair.agents[0].scripts["data"] = refuse
    pair.agents[1].scripts["data"] = answer({"rows": 3})
    for number in range(3):
        ended = await run_one(pair, f"u{number}")
        assert ended.state == pb.RUN_STATE_SUCCEEDED
        assert ended.stages[0].attempt == 1


async def test_one_that_is_gone_is_left_at_once_and_used_again_when_it_is_back(
    pair: Pair, eventually: Eventually
) -> None:
    for agents in pair.agents:
        agents.scripts["data"] = answer({"rows": 3})
    await pair.servers[0].aclose()
    for number in range(4):
        assert (await run_one(pair, f"u{number}")).state == pb.RUN_STATE_SUCCEEDED
    assert pair.attempts() == [0, 4]
    await pair.start(0)

    async def used_again() -> bool:
        await run_one(pair)
        return pair.attempts()[0] > 0

    await eventually(used_again, within=5)


async def test_with_none_there_a_run_waits_and_goes_on_when_one_is_back(pair: Pair) -> None:
    for agents in pair.agents:
        agents.scripts["data"] = answer({"rows": 3})
    for server in pair.servers:
        await server.aclose()
    run = (await pair.world.execute()).run
    await asyncio.sleep(0.3)
    await pair.start(1)
    ended = await pair.world.ended(run.run_id)
    assert ended.state == pb.RUN_STATE_SUCCEEDED
    assert pair.attempts() == [0, 1]
