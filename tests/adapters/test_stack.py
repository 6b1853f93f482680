"""The examples through the whole stack, in worker processes: the same answers as alone, and every way to end."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from carrel.client import Event
from carrel.ids import new_id
from tests.adapters.patience import let_go
from tests.adapters.test_desks import REFUND, WHERE
from tests.conftest import Eventually
from tests.e2e.checks import check_run, until_end
from tests.support.model_server import Hang, Say, Step, by_rules, model_server
from tests.support.stack import RunningStack, running_stack

LIBRARIES = {"pydantic": "pydantic-desk", "langgraph": "graph-desk", "openai": "openai-desk"}
PREFIX = "CARREL_AGENT_INSTANCE_MODELS__"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def port() -> int:
    """Where each test's own model server listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def stack(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    environment = {
        f"{PREFIX}BASE_URL": f"http://127.0.0.1:{port}/v1",
        f"{PREFIX}DEFAULT": "scripted",
    }
    agents = [str(Path(__file__).with_name("slow_desks.py"))]
    with running_stack(tmp_path_factory.mktemp("adapters"), agents=agents, environment=environment) as running:
        yield running


async def alone(library: str, question: str) -> str:
    """The example's answer without Carrel."""
    name = f"examples.adapters.{library}_desk"
    if library == "langgraph":
        sys.modules.pop(name, None)  # it looks for its key when it is loaded
    answer: str = await importlib.import_module(name).answer(question)
    await let_go()
    return answer


async def inside(stack: RunningStack, agent: str, question: str) -> list[Event]:
    """The run's events, with every question answered with yes."""
    async with stack.client(new_id("user")) as client, asyncio.timeout(60):
        run = await client.execute(question, pipeline=[agent])
        events: list[Event] = []
        async for event in client.events():
            events.append(event)
            if event.event_type == "input_required":
                value: Any = "yes" if event.data["schema"].get("type") == "string" else True
                await client.provide_input(run.run_id, event.data["input_id"], value)
            if event.event_type == "run_completed":
                break
    return check_run(events, run.run_id)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_the_same_answer_inside_and_outside(
    library: str, stack: RunningStack, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with model_server(otherwise=by_rules, port=port, keep_alive=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        outside = [await alone(library, question) for question in (WHERE, REFUND)]
        asked = len(server.requests)
        runs = [await inside(stack, LIBRARIES[library], question) for question in (WHERE, REFUND)]
        again = len(server.requests) - asked
    assert [run[-1].data["result"]["answer"] for run in runs] == outside
    assert again == asked, "what was asked before the approval is not asked again after it"
    assert [event.event_type for event in runs[1]].count("input_required") == 1
    for run, answer in zip(runs, outside, strict=True):
        said = [event.data.get("text") or event.data["delta"] for event in run if event.event_type == "agent_message"]
        assert "".join(said) == answer


async def test_a_graph_goes_on_with_the_threads_state_and_nobody_elses(
    stack: RunningStack, port: int, eventually: Eventually
) -> None:
    thread = new_id("thread")

    async def ask(user: str, question: str) -> list[str]:
        """What the model has read at the run's last call, by role."""
        async with stack.client(user) as client:
            run = await client.execute(question, pipeline=["graph-desk"], thread_id=thread)
            assert (await until_end(client, run.run_id))[-1].data["status"] == "SUCCEEDED"
        return [message["role"] for message in server.requests[-1].body["messages"]]

    async with model_server(otherwise=by_rules, port=port) as server:
        first, second = new_id("user"), new_id("user")
        once = ["system", "user", "assistant", "tool"]
        assert await ask(first, WHERE) == once
        assert await ask(first, WHERE) == [*once, "assistant", *once[1:]]
        assert await ask(second, WHERE) == once
        await eventually(lambda: _deleted(stack, first, thread), within=10, what="the thread is deleted")
        assert await ask(first, WHERE) == once


async def test_one_that_hangs_is_ended_by_its_timeout(stack: RunningStack, port: int) -> None:
    async with model_server(otherwise=by_rules, port=port):
        ended = await asyncio.gather(*(inside(stack, f"{library}-slow", WHERE) for library in LIBRARIES))
    for events in ended:
        assert events[-1].data["status"] == "FAILED"
        assert events[-1].data["error"]["code"] == "AGENT_IDLE_TIMEOUT"
        kinds = [event.event_type for event in events]
        assert (kinds.count("tool_executing"), kinds.count("tool_completed")) == (1, 0)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_cancelled_on_request(library: str, stack: RunningStack, port: int, eventually: Eventually) -> None:
    async with model_server(Hang(), port=port) as server, stack.client(new_id("user")) as client:
        run = await client.execute(WHERE, pipeline=[LIBRARIES[library]])
        await eventually(lambda: server.open == 1, within=20)
        await client.cancel(run.run_id)
        events = await until_end(client, run.run_id)
        assert events[-1].data["status"] == "CANCELLED"
        await eventually(lambda: server.aborted == 1)


@pytest.mark.chaos
async def test_recovered_at_the_stage_and_the_call_after_a_kill(
    stack: RunningStack, port: int, eventually: Eventually
) -> None:
    """All three at once: their second model call hangs, agent_instance is killed, the new one goes on from there."""
    hanging = True

    def rule(body: Mapping[str, Any]) -> Step:
        step = by_rules(body)
        return Hang() if hanging and isinstance(step, Say) else step

    async with model_server(otherwise=rule, port=port) as server:
        runs = [asyncio.create_task(_two_stages(stack, agent)) for agent in LIBRARIES.values()]
        await eventually(lambda: server.open == len(runs), within=40)
        hanging = False
        asked = len(server.requests)
        assert asked == 2 * len(runs)
        stack.kill("agent_instance")
        ended = await asyncio.gather(*runs)
        assert len(server.requests) == 3 * len(runs), "of each run, the call that hung is made again, and no other"
    for events in ended:
        assert events[-1].data["status"] == "SUCCEEDED", events[-1].data
        assert events[-1].data["result"]["answer"].startswith("Here is what I found: order 7")
        kinds = [(event.event_type, event.agent_name) for event in events]
        assert kinds.count(("agent_completed", "first")) == kinds.count(("agent_started", "first")) == 1
        assert [event.event_type for event in events].count("run_attempt") == 1


async def _deleted(stack: RunningStack, user: str, thread: str) -> bool:
    """Delete it, once its last run has ended for good."""
    headers = {"Authorization": f"Bearer {stack.token(user)}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.delete(f"{stack.url}/api/threads/{thread}") as answer,
    ):
        return answer.status < 300


async def _two_stages(stack: RunningStack, agent: str) -> list[Event]:
    async with stack.client(new_id("user")) as client:
        run = await client.execute(WHERE, pipeline=["first", agent])
        return check_run(await until_end(client, run.run_id, within=120), run.run_id)
