"""Bound runs over five processes: they end with whoever asked for them, however that ends; their workers too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from carrel.client import Endpoints, GatewayTickets, InternalClient, Position
from carrel.client.http import GatewayHttp
from carrel.ids import new_id
from tests.conftest import Eventually
from tests.support.stack import RunningStack, running_stack

LONG = {"seconds": 120}


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes and the agent that stays."""
    agents = [str(Path(__file__).with_name("asking_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("bound"), agents=agents) as running:
        yield running


async def _status(http: GatewayHttp, run_id: str) -> str:
    return str((await http.run(run_id))["status"])


async def _becomes(http: GatewayHttp, run_id: str, status: str, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while await _status(http, run_id) != status:  # noqa: ASYNC110  (another process, which is asked)
            await asyncio.sleep(0.05)


async def _cancelled_in_its_log(stack: RunningStack, user: str, run_id: str) -> None:
    async with stack.client(user, resume=Position()) as socket:
        async with asyncio.timeout(10):
            async for event in socket.events():
                if event.run_id == run_id and event.terminal:
                    assert event.data["status"] == "CANCELLED"
                    return


def _workers(stack: RunningStack) -> set[int]:
    """Processes below agent_instance that serve an attempt, or wait for one."""
    pid = stack.pid("agent_instance")
    assert pid is not None
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


async def _connected(stack: RunningStack, user: str, session: aiohttp.ClientSession) -> tuple[Any, str]:
    """A socket, and its bound run, which is at work."""
    socket = await session.ws_connect(f"{stack.url}/ws", headers={"Authorization": f"Bearer {stack.token(user)}"})
    frame = {"type": "agent_execute", "message": "stay", "agent_name": "talk", "params": LONG, "bound": True}
    await socket.send_json(frame)
    run_id = ""
    while True:
        told = await socket.receive_json(timeout=10)
        if told.get("type") == "run_accepted":
            run_id = told["run_id"]
        if told.get("event_type") == "agent_thinking":
            return socket, run_id


async def test_a_cut_socket_cancels_its_run_and_ends_the_worker(talking: RunningStack, eventually: Eventually) -> None:
    user = new_id("user")
    async with talking.http(user) as http, aiohttp.ClientSession() as session:
        socket, run_id = await _connected(talking, user, session)
        at_work = _workers(talking)
        socket._response.connection.transport.abort()
        await _becomes(http, run_id, "CANCELLED")
        await _cancelled_in_its_log(talking, user, run_id)
        # The pool is filled up again; whoever was at work is gone.
        await eventually(lambda: not at_work or at_work - _workers(talking), within=10)


async def test_a_run_that_is_not_bound_outlives_its_socket(talking: RunningStack) -> None:
    user = new_id("user")
    async with talking.http(user) as http:
        async with talking.client(user) as socket:
            run = await socket.execute("stay", pipeline=("talk",), params=LONG)
        await asyncio.sleep(1.0)
        assert await _status(http, run.run_id) == "RUNNING"
        await http.cancel(run.run_id)


async def test_a_rest_client_that_goes_away_cancels_its_run(talking: RunningStack, eventually: Eventually) -> None:
    user = new_id("user")
    async with talking.http(user) as http:
        asking = asyncio.create_task(http.execute("stay", pipeline=("talk",), params=LONG, bound=True))
        runs: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while not (runs and runs[0]["status"] == "RUNNING"):
                runs = (await http.get("/api/runs"))["runs"]
                await asyncio.sleep(0.02)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await _becomes(http, runs[0]["run_id"], "CANCELLED")


async def test_a_bound_run_survives_a_restart_of_execution_and_still_ends_with_its_socket(
    talking: RunningStack, eventually: Eventually
) -> None:
    user = new_id("user")
    async with talking.http(user) as http, aiohttp.ClientSession() as session:
        socket, run_id = await _connected(talking, user, session)
        pid = talking.kill("execution")
        await eventually(lambda: talking.restarted("execution", pid), within=20)
        # Longer than execution waits for whoever keeps it.
        await asyncio.sleep(8.0)
        assert await _status(http, run_id) == "RUNNING"
        await socket.close()
        await _becomes(http, run_id, "CANCELLED")


async def test_kill_9_of_the_gateway_cancels_its_bound_runs(talking: RunningStack, eventually: Eventually) -> None:
    user = new_id("user")
    async with talking.http(user) as http, aiohttp.ClientSession() as session:
        _, run_id = await _connected(talking, user, session)
        pid = talking.kill("gateway")
        await eventually(lambda: talking.restarted("gateway", pid), within=20)
        await _becomes(http, run_id, "CANCELLED")


async def test_an_internal_client_s_bound_run_ends_with_its_block(talking: RunningStack) -> None:
    user = new_id("user")
    endpoints = Endpoints(talking.address("execution"), talking.address("emitter"), talking.address("bridge"))
    async with (
        GatewayTickets(talking.url, talking.token(user)) as tickets,
        InternalClient(endpoints, tickets) as client,
        talking.http(user) as http,
    ):
        async with client.bound_run("stay", pipeline=("talk",), params=LONG) as run:
            # Longer than execution waits for a keeper.
            await asyncio.sleep(6.0)
            assert await _status(http, run.run_id) == "RUNNING"
        await _becomes(http, run.run_id, "CANCELLED")
        async with client.bound_run("be quick", pipeline=("talk",)) as run:
            await _becomes(http, run.run_id, "SUCCEEDED")
