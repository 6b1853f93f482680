"""A scripted host: the other end of a worker's port, driven by the test line by line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import pytest

from carrel.agent_codec import decode, encode
from carrel.agent_messages import DownMessage, EmitEvent, EventAccepted, Failure, Result, Start, UpMessage
from carrel.agent_runtime import WorkerSession
from carrel.agents import Agent, Request
from carrel.context import UserExecutionContext
from carrel.errors import UnknownAgentError

M = TypeVar("M")

RUN = UserExecutionContext(user_id="alice", thread_id="t1", run_id="run-1", request_id="req-1", ticket="secret")


class ScriptedHost:
    """Both the port that the session is given and the hands of the test; every message really is encoded."""

    def __init__(self, agent: type[Agent], *, heartbeat_s: float | None = None) -> None:
        self._up: asyncio.Queue[bytes] = asyncio.Queue()
        self._down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.agent = agent
        self.accept_events = True
        self.environment: dict[str, str] = {}
        self.events: list[EmitEvent] = []
        self.session = WorkerSession(self, self._find, heartbeat_s)
        self.serving = asyncio.create_task(self.session.serve())

    def _find(self, name: str) -> type[Agent]:
        if name != self.agent.name:
            raise UnknownAgentError(f"no agent {name}")
        return self.agent

    async def send(self, message: UpMessage) -> None:
        self._up.put_nowait(encode(message))

    async def receive(self) -> DownMessage | None:
        data = await self._down.get()
        return None if data is None else decode(data)  # type: ignore[return-value]  # the test sends what it means to

    def say(self, message: Any) -> None:
        self._down.put_nowait(encode(message))

    def leave(self) -> None:
        self._down.put_nowait(None)

    def start(self, *, name: str | None = None, tools: tuple[str, ...] | None = None, **request: Any) -> None:
        chosen = tuple(item.name for item in self.agent.tools) if tools is None else tools
        asked = Request(request.pop("message", "do it"), **request)
        self.say(Start(RUN.to_dict(), name or self.agent.name, asked.to_dict(), chosen, self.environment))

    async def hear(self, kind: type[M]) -> M:
        """The next message up, accepting events on the way unless told otherwise."""
        while True:
            message = decode(await asyncio.wait_for(self._up.get(), 5))
            if isinstance(message, EmitEvent):
                self.events.append(message)
                if self.accept_events and kind is not EmitEvent:
                    self.say(EventAccepted(message.call_id))
                    continue
            assert isinstance(message, kind), message
            return message

    async def end(self) -> Mapping[str, Any]:
        """The result, once the session has ended by itself and said nothing after it."""
        result = await self.hear(Result)
        await self.ended()
        return result.result

    async def failure(self) -> Mapping[str, Any]:
        """The error, likewise."""
        failure = await self.hear(Failure)
        await self.ended()
        return failure.error

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.serving), 5)
        assert self._up.empty()

    def silent(self) -> bool:
        return self._up.empty()

    async def aclose(self) -> None:
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)


@pytest.fixture
async def hire() -> Any:
    """`host = hire(AgentClass)`: a session that serves the agent, with the test as its host."""
    hosts: list[ScriptedHost] = []

    def make(agent: type[Agent], **options: Any) -> ScriptedHost:
        hosts.append(ScriptedHost(agent, **options))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.aclose()
