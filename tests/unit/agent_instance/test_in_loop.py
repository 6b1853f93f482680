"""The in-loop executor alone: what crosses is bytes, what is killed is silent, what misbehaves is contained."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carrel import Agent, AgentContext, Request
from carrel.agent_codec import decode, encode
from carrel.agent_messages import EmitEvent, EventAccepted, Failure, Result, Start
from carrel.errors import ProtocolError, WorkerLostError
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.workers.in_loop import InLoopExecutor, Pipe
from tests.conftest import Eventually
from tests.unit.agent_instance.support import root_context


class Hello(Agent):
    name = "hello"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("hm")
        return {"said": request.message}


def entry_of(agent: type[Agent]) -> AgentEntry:
    return AgentClassRegistry.of(agent)[agent.name]


def start_of(name: str = "hello") -> bytes:
    return encode(Start(root_context().to_dict(), name, Request("hi").to_dict()))


async def started(agent: type[Agent] = Hello) -> InLoopExecutor:
    executor = InLoopExecutor(kill_s=0.05)
    await executor.start()
    await executor.initialize(entry_of(agent))
    return executor


async def next_message(executor: InLoopExecutor) -> Any:
    data = await executor.receive()
    assert data is None or isinstance(data, bytes)
    return None if data is None else decode(data)


async def test_a_worker_serves_one_attempt_and_ends() -> None:
    executor = await started()
    await executor.send(start_of())
    event = await next_message(executor)
    assert isinstance(event, EmitEvent)
    assert event.data == {"text": "hm"}
    await executor.send(encode(EventAccepted(event.call_id)))
    assert await next_message(executor) == Result({"said": "hi"})
    assert await next_message(executor) is None
    await executor.join()
    with pytest.raises(WorkerLostError):
        await executor.initialize(entry_of(Hello))
    await executor.send(start_of())  # into nothing


async def test_a_wrong_agent_or_garbage_ends_the_worker_only() -> None:
    executor = await started()
    await executor.send(start_of("other"))
    failure = await next_message(executor)
    assert isinstance(failure, Failure)
    assert failure.error["code"] == "UNKNOWN_AGENT"
    executor = await started()
    await executor.send(b"\x00garbage")
    assert await next_message(executor) is None


async def test_kill_is_legal_at_any_time_and_silences_the_worker() -> None:
    idle = InLoopExecutor()
    await idle.kill()
    await idle.aclose()
    with pytest.raises(WorkerLostError):
        await idle.initialize(entry_of(Hello))
    executor = await started()
    await executor.send(start_of())
    await asyncio.sleep(0)
    await executor.kill()
    assert await executor.receive() is None
    await executor.kill()


async def test_aclose_lets_a_worker_finish() -> None:
    executor = await started()
    await executor.send(start_of())
    event = await next_message(executor)
    await executor.send(encode(EventAccepted(event.call_id)))
    await executor.aclose(1.0)
    assert executor._task is not None
    assert not executor._task.cancelled()


async def test_a_message_over_the_bound_is_refused() -> None:
    executor = await started()
    with pytest.raises(ProtocolError):
        await executor.send(b"x" * (16 * 1024 * 1024 + 1))
    await executor.kill()


async def test_a_pipe_is_bounded_and_ends(eventually: Eventually) -> None:
    pipe = Pipe(2)
    await pipe.put(b"1")
    await pipe.put(b"2")
    third = asyncio.create_task(pipe.put(b"3"))
    await asyncio.sleep(0)
    assert not third.done()
    assert await pipe.get() == b"1"
    await third
    pipe.close()
    await pipe.put(b"4")
    assert [await pipe.get(), await pipe.get(), await pipe.get()] == [b"2", b"3", None]
