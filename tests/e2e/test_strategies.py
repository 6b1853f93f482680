"""A second message on a busy thread, through the socket: what runs, and what the thread's history says afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carrel.client import Event, SocketClient
from carrel.client.http import GatewayHttp
from carrel.errors import ThreadBusyError
from carrel.ids import new_id
from tests.support.stack import RunningStack, running_stack

LONG_S = 60.0


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes and the agent that talks."""
    agents = [str(Path(__file__).with_name("asking_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("talking"), agents=agents) as running:
        yield running


class Talk:
    """One user's socket, one thread."""

    def __init__(self, socket: SocketClient, http: GatewayHttp) -> None:
        self.socket = socket
        self.http = http
        self.thread = new_id("thread")
        self.ends: dict[str, Event] = {}

    async def say(self, message: str, strategy: str = "", *, seconds: float = 0.0) -> tuple[str, str]:
        accepted = await self.socket.execute(
            message, pipeline=("talk",), thread_id=self.thread, strategy=strategy, params={"seconds": seconds}
        )
        return accepted.run_id, accepted.status

    async def begun(self, run_id: str) -> None:
        await self._until(lambda event: event.run_id == run_id and event.event_type == "agent_thinking")

    async def end(self, run_id: str) -> Event:
        if run_id not in self.ends:
            await self._until(lambda event: event.run_id == run_id and event.terminal)
        return self.ends[run_id]

    async def _until(self, wanted: Any) -> None:
        async for event in self.socket.events():
            if event.terminal:
                self.ends[event.run_id] = event
            if wanted(event):
                return

    async def history(self) -> list[tuple[str, str]]:
        answer = await self.http.get(f"/api/threads/{self.thread}/messages")
        return [(message["role"], message["text"]) for message in answer["messages"]]


@pytest.fixture
async def talk(talking: RunningStack) -> Any:
    """Somebody who talks."""
    user = new_id("user")
    async with talking.client(user) as socket, talking.http(user) as http:
        yield Talk(socket, http)


async def test_reject_leaves_the_thread_to_the_run_that_has_it(talk: Talk) -> None:
    first, _ = await talk.say("one", seconds=0.5)
    await talk.begun(first)
    with pytest.raises(ThreadBusyError):
        await talk.say("two")
    with pytest.raises(ThreadBusyError):
        await talk.say("two", "reject")
    assert (await talk.end(first)).data["status"] == "SUCCEEDED"
    assert await talk.history() == [("user", "one"), ("assistant", "to one")]
    third, _ = await talk.say("three")
    assert (await talk.end(third)).data["result"]["history"] == ["one", "to one"]


async def test_enqueue_runs_after_it_and_knows_what_it_said(talk: Talk) -> None:
    first, status = await talk.say("one", seconds=0.5)
    assert status == "RUNNING"
    await talk.begun(first)
    second, queued = await talk.say("two", "enqueue")
    assert queued == "QUEUED"
    assert (await talk.http.run(second))["status"] == "QUEUED"
    listed = await talk.http.get("/api/agents/status?status=QUEUED")
    assert [run["run_id"] for run in listed["runs"]] == [second]
    end = await talk.end(second)
    assert talk.ends[first].data["status"] == "SUCCEEDED"
    assert end.data["result"]["history"] == ["one", "to one"]
    assert await talk.history() == [
        ("user", "one"),
        ("assistant", "to one"),
        ("user", "two"),
        ("assistant", "to two"),
    ]


async def test_interrupt_cancels_it_and_keeps_what_was_said(talk: Talk) -> None:
    first, _ = await talk.say("one", seconds=LONG_S)
    await talk.begun(first)
    waiting, _ = await talk.say("two", "enqueue")
    last, _ = await talk.say("three", "interrupt")
    end = await talk.end(last)
    assert {talk.ends[run_id].data["status"] for run_id in (first, waiting)} == {"CANCELLED"}
    assert (end.data["status"], end.data["result"]["history"][0]) == ("SUCCEEDED", "one")
    history = await talk.history()
    assert history[0] == ("user", "one")
    assert history[-2:] == [("user", "three"), ("assistant", "to three")]
    assert not any(text == "to one" for _, text in history)


async def test_rollback_cancels_it_and_takes_back_what_was_said(talk: Talk) -> None:
    before, _ = await talk.say("zero")
    await talk.end(before)
    first, _ = await talk.say("one", seconds=LONG_S)
    await talk.begun(first)
    last, _ = await talk.say("two", "rollback")
    end = await talk.end(last)
    assert talk.ends[first].data["status"] == "CANCELLED"
    assert end.data["result"]["history"] == ["zero", "to zero"]
    assert await talk.history() == [
        ("user", "zero"),
        ("assistant", "to zero"),
        ("user", "two"),
        ("assistant", "to two"),
    ]


async def test_other_threads_of_the_user_go_on(talk: Talk) -> None:
    first, _ = await talk.say("one", seconds=LONG_S)
    await talk.begun(first)
    other = await talk.socket.execute("elsewhere", pipeline=("talk",))
    assert (await talk.end(other.run_id)).data["status"] == "SUCCEEDED"
    assert (await talk.http.run(first))["status"] == "RUNNING"
    await talk.http.cancel(first)
    assert (await talk.end(first)).data["status"] == "CANCELLED"
