"""A cancel ends the run and the process that ran it, whatever the agent thinks of it: socket, REST and RPC alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.client import Endpoints, GatewayTickets, InternalClient, SocketClient
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.processes import alive
from tests.support.stack import RunningStack, running_stack

# The promise is a second; a machine that is busy with other tests may take a little more.
_GONE_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes and agents that do not want to end."""
    agents = [str(Path(__file__).with_name("stubborn_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("stubborn"), agents=agents) as running:
        yield running


async def _cancel(stack: RunningStack, user: str, client: SocketClient, run_id: str, way: str) -> None:
    if way == "socket":
        await client.cancel(run_id, "enough")
    elif way == "rest":
        async with stack.http(user) as http:
            await http.cancel(run_id)
    else:
        endpoints = Endpoints(stack.address("execution"), stack.address("emitter"), stack.address("bridge"))
        async with GatewayTickets(stack.url, stack.token(user)) as tickets, InternalClient(endpoints, tickets) as inner:
            await inner.cancel_run(run_id)


@pytest.mark.parametrize("way", ["socket", "rest", "rpc"])
@pytest.mark.parametrize("how", ["swallow", "spin", "tool"])
async def test_a_cancel_ends_the_run_and_its_process(
    stubborn: RunningStack, eventually: Eventually, how: str, way: str
) -> None:
    user = f"cancels-{how}-{way}"
    async with stubborn.client(user) as client:
        run = await client.execute("go", pipeline=["stubborn"], params={"how": how})
        pid, busy = 0, "tool_executing" if how == "tool" else "agent_thinking"
        async with asyncio.timeout(20):
            async for event in client.events():
                pid = pid or int(event.data.get("pid", 0))
                if event.event_type == busy:
                    break
        assert alive(pid)
        await _cancel(stubborn, user, client, run.run_id, way)
        async with asyncio.timeout(20):
            async for event in client.events():
                if event.terminal:
                    assert event.data["status"] == "CANCELLED"
                    break
        with Awake() as took:
            await eventually(lambda: not alive(pid))
        assert took.seconds < _GONE_WITHIN_S
