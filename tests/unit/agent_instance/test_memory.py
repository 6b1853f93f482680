"""What an agent keeps in a thread: handed down, handed up with the result, and by nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.agent_memory import MAX_MEMORY_BYTES, Memory
from carrel.agent_messages import Result
from carrel.errors import CarrelError, InvalidRequestError, TooLargeError
from tests.unit.agent_instance.support import Bench, Stage
from tests.unit.agent_instance.test_hostile_worker import play


@tool
async def keep(ctx: AgentContext) -> None:
    """Keep what was there and one more."""
    ctx.memory.keep(ctx.memory.data + b"t")


class Keeper(Agent):
    """Keeps in each way that there is, or fails afterwards."""

    name = "keeper"
    tools = (keep,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        before = ctx.memory.data.decode()
        if request.message == "sub":
            return {"sub": await ctx.run_agent("under")}
        if request.message == "tool":
            await ctx.call_tool("keep")
        elif request.message != "nothing":
            async with ctx.child("part") as child:
                child.memory.keep(f"{before}{request.message}")
        if request.message == "fail":
            raise KeyError("late")
        return {"before": before}


class Under(Agent):
    """A sub-agent, and a fallback."""

    name = "under"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        code = ""
        try:
            ctx.memory.keep(b"x")
        except CarrelError as error:
            code = error.code
        return {"code": code, "data": ctx.memory.data.decode(), "available": ctx.memory.available}


class Failing(Agent):
    """Has a fallback."""

    name = "failing"
    fallback = "under"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        ctx.memory.keep(b"of one that failed")
        raise KeyError


async def kept(message: str, memory: bytes = b"", agent: str = "keeper") -> Stage:
    return await Bench(Keeper, Under, Failing).run(agent, message=message, memory=memory)


async def test_what_was_kept_comes_back_and_what_is_kept_goes_with_the_result() -> None:
    first = await kept("a")
    assert first.outcome is not None
    assert (first.result, first.outcome.memory) == ({"before": ""}, b"a")
    second = await kept("b", first.outcome.memory)
    assert second.outcome is not None
    assert (second.result, second.outcome.memory) == ({"before": "a"}, b"ab")
    third = await kept("tool", b"a")
    assert third.outcome is not None
    assert third.outcome.memory == b"at"


@pytest.mark.parametrize(("message", "agent"), [("nothing", "keeper"), ("fail", "keeper"), ("hello", "failing")])
async def test_nothing_is_kept_by_one_that_keeps_nothing_or_fails(message: str, agent: str) -> None:
    stage = await kept(message, b"there", agent)
    assert stage.outcome is not None
    assert stage.outcome.memory == b""


async def test_a_subagent_and_a_fallback_have_none() -> None:
    nobody = {"code": "INVALID_REQUEST", "data": "", "available": False}
    assert (await kept("sub", b"secret")).result == {"sub": nobody}
    assert (await kept("hello", b"secret", "failing")).result == nobody


async def test_a_worker_cannot_keep_more_than_allowed() -> None:
    stage, _ = await play(Result({}, memory=b"x" * (MAX_MEMORY_BYTES + 1)))
    assert stage.error.code == "PROTOCOL"


def test_what_can_be_kept_is_bounded() -> None:
    memory = Memory(available=True)
    memory.keep("naïve")
    assert memory.kept == "naïve".encode()
    with pytest.raises(TooLargeError, match="at most 262144"):
        memory.keep(b"x" * (MAX_MEMORY_BYTES + 1))
    with pytest.raises(InvalidRequestError, match="nothing to keep"):
        memory.keep("")
    assert memory.kept == "naïve".encode()
