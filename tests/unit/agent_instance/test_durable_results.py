"""A call's result reaches its agent once execution has stored its journal entry, and an attempt that waits for it ends
like any other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import ToolFailedError
from services.agent_instance.domain.dispatcher import DispatchStrategy
from services.agent_instance.domain.receipts import Receipts
from services.agent_instance.proxy import ModelProxy
from tests.conftest import Eventually
from tests.support.model_server import Say
from tests.unit.agent_instance.model_support import bench as model_bench
from tests.unit.agent_instance.support import Bench, Stage

ran: list[Any] = []
told: list[Any] = []


@pytest.fixture(autouse=True)
async def _fresh() -> AsyncIterator[None]:
    ran.clear()
    told.clear()
    yield
    await asyncio.sleep(0)
    # Ours have names; those of the test's own are "Task-1" and so on.
    left = [task.get_name() for task in asyncio.all_tasks() if not task.get_name().startswith("Task-")]
    assert not left


@tool
async def count(n: int) -> int:
    ran.append(n)
    return n


@tool(host=True)
async def host_count(n: int) -> int:
    ran.append(n)
    return n


@tool
async def broken() -> None:
    raise ValueError("no")


TOOLS = (count, host_count, broken)


async def _until(calls: int) -> None:
    async with asyncio.timeout(5):
        while len(ran) < calls:  # noqa: ASYNC110  (what counts is made before there is a loop)
            await asyncio.sleep(0.01)


class Steps(Agent):
    """One call after the other; what it has got is in ``told``."""

    name = "steps"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for n in range(1, 4):
            value = await ctx.call_tool(request.params.get("tool", "count"), n=n)
            told.append(value)
        return {"told": list(told)}


class Together(Agent):
    name = "together"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        async def one(n: int) -> None:
            told.append(await ctx.call_tool("count", n=n))

        calls = [asyncio.create_task(one(n)) for n in range(1, 7)]
        if request.params.get("leave"):
            await _until(6)
            return {"told": list(told)}
        await _until(request.params.get("at_once", 6))
        await ctx.thinking("still here")
        await asyncio.gather(*calls)
        return {"told": list(told)}


class Parent(Agent):
    name = "parent"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        if request.params.get("leave"):
            child = asyncio.create_task(ctx.run_agent("child"))
            await _until(1)
            child.cancel()
            return {}
        told.append((await ctx.run_agent("child"))["done"])
        return {}


class Child(Agent):
    name = "child"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        ran.append("child")
        return {"done": True}


class Failing(Agent):
    name = "failing"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await ctx.call_tool("broken")
        except ToolFailedError as error:
            told.append(error.code)
        return {}


class Asking(Agent):
    """Asks its user while a call is under way."""

    name = "asking"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        call = asyncio.create_task(ctx.call_tool("count", n=1))
        answer = await ctx.ask("Go on?")
        return {"answer": answer, "counted": await call}


async def begun(name: str, *agents: type[Agent], **options: Any) -> tuple[Stage, asyncio.Task[Any]]:
    stage = await Bench(Steps, Together, Parent, Child, Failing, Asking).stage(name, **options)
    stage.uplink.withhold = True
    return stage, asyncio.create_task(stage.run())


async def journaled(stage: Stage, entries: int, eventually: Eventually) -> None:
    await eventually(lambda: len(stage.uplink.journaled) == entries)


async def waits(task: asyncio.Task[Any]) -> None:
    """It has not ended, a moment later either."""
    await asyncio.wait({task}, timeout=0.1)
    assert not task.done()


@pytest.mark.parametrize("name", ["count", "host_count"])
async def test_the_next_call_begins_when_the_entry_of_the_one_before_is_stored(
    name: str, eventually: Eventually
) -> None:
    stage, task = await begun("steps", params={"tool": name})
    for n in (1, 2, 3):
        await journaled(stage, n, eventually)
        await waits(task)
        # Its user has heard of its end, its agent has not.
        assert stage.kinds[-1] == "tool_completed"
        assert (ran, told) == (list(range(1, n + 1)), list(range(1, n)))
        stage.uplink.acknowledge()
    await task
    assert stage.result == {"told": [1, 2, 3]}
    assert stage.uplink.receipts.open == 0


async def test_one_acknowledgement_covers_calls_that_ran_together_and_the_agent_is_not_held_up(
    eventually: Eventually,
) -> None:
    stage, task = await begun("together")
    await eventually(lambda: len(stage.uplink.journaled) == 6 and "agent_thinking" in stage.kinds)
    assert told == []
    stage.uplink.acknowledge(4)
    await eventually(lambda: len(told) == 4)
    await waits(task)
    stage.uplink.acknowledge(3)  # an older word takes nothing back
    stage.uplink.acknowledge()
    await task
    assert stage.result == {"told": [item.result and int(item.result) for item in stage.uplink.journaled]}


@pytest.mark.parametrize("options", [{"strategy": DispatchStrategy.SEQUENTIAL}, {"concurrency": 1}])
async def test_a_call_that_waits_for_its_turn_begins_when_the_one_before_is_stored(
    options: dict[str, Any], eventually: Eventually
) -> None:
    stage = await Bench(Together, **options).stage("together", params={"at_once": 1})
    stage.uplink.withhold = True
    task = asyncio.create_task(stage.run())
    for n in range(1, 7):
        await journaled(stage, n, eventually)
        await waits(task)
        assert ran == list(range(1, n + 1))
        stage.uplink.acknowledge()
    await task
    assert stage.result == {"told": [1, 2, 3, 4, 5, 6]}


async def test_a_failure_that_is_kept_waits_too(eventually: Eventually) -> None:
    stage, task = await begun("failing")
    await eventually(lambda: stage.uplink.journaled)
    await waits(task)
    assert told == []
    stage.uplink.acknowledge()
    await task
    assert told == ["TOOL_FAILED"]


async def test_a_sub_agents_result_waits(eventually: Eventually) -> None:
    stage, task = await begun("parent")
    await eventually(lambda: stage.uplink.journaled)
    await waits(task)
    assert (ran, told) == (["child"], [])
    stage.uplink.acknowledge()
    await task
    assert told == [True]


@pytest.mark.parametrize("name", ["together", "parent"])
async def test_an_agent_that_ends_without_its_results_does_not_wait_for_them(name: str) -> None:
    stage, task = await begun(name, params={"leave": True})
    await asyncio.wait_for(task, 5)
    assert stage.result is not None
    assert told == []


async def test_a_question_is_asked_when_what_ended_before_it_is_stored(eventually: Eventually) -> None:
    stage, task = await begun("asking")
    await eventually(lambda: stage.uplink.journaled)
    await waits(task)
    stage.uplink.acknowledge()
    await task
    assert stage.question.prompt == "Go on?"
    again = await stage.again("yes")
    assert again.result == {"answer": "yes", "counted": 1}
    assert ran == [1]


@pytest.mark.parametrize("name", ["steps", "together", "parent", "asking"])
async def test_a_cancel_ends_the_wait(name: str, eventually: Eventually) -> None:
    stage, task = await begun(name)
    await eventually(lambda: stage.uplink.journaled)
    stage.attempt.cancel("asked")
    await asyncio.wait_for(task, 5)
    assert stage.error.code == "CANCELLED_RUN"
    assert told == []


@pytest.mark.parametrize("name", ["steps", "parent", "asking"])
async def test_the_time_of_the_run_ends_the_wait_and_the_agents_own_stands_still(name: str) -> None:
    stage, task = await begun(name, idle_s=0.2, wall_s=0.4, deadline=time.time() + 0.8)
    await asyncio.wait_for(task, 5)
    assert stage.error.code == "ENGINE_TIMEOUT"
    assert "the run's engine" in stage.error.message
    assert told == []


async def test_the_loss_of_the_stream_ends_the_wait(eventually: Eventually) -> None:
    stage, task = await begun("together")
    await eventually(lambda: len(stage.uplink.journaled) == 6)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert stage.producer.closed


async def test_a_models_answer_waits_but_its_pieces_do_not(eventually: Eventually) -> None:
    async with model_bench(Say("one two three", pieces=3)) as b:
        turn = b.turn()
        turn.uplink.withhold = True
        asked = await turn.ask(deltas=True)
        await eventually(lambda: turn.uplink.journaled)
        await asyncio.sleep(0.1)
        assert "".join(asked.deltas) == "one two three"
        assert not asked.done.is_set()
        turn.uplink.acknowledge()
        assert (await asked.answer())["message"]["content"] == "one two three"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_end_of_a_proxied_answer_waits_and_holds_no_place_meanwhile(
    stream: bool, eventually: Eventually
) -> None:
    got = b""

    async def ask() -> None:
        nonlocal got
        found = turn.models.environment()
        body = {"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        headers = {"Authorization": f"Bearer {found['OPENAI_API_KEY']}"}
        async with http.post(f"{found['OPENAI_BASE_URL']}/chat/completions", json=body, headers=headers) as answer:
            async for piece in answer.content.iter_any():
                got += piece

    script = (Say("one two three", pieces=3, delay_s=0.02), Say("another"))
    async with (
        ModelProxy(max_request_bytes=1024 * 1024) as proxy,
        model_bench(*script, door=proxy, policy={"concurrency_per_user": 1, "timeout_s": 0.5}) as b,
        aiohttp.ClientSession() as http,
    ):
        turn = b.turn()
        turn.uplink.withhold = True
        task = asyncio.create_task(ask())
        await eventually(lambda: turn.uplink.audited)  # the model's part is over
        assert turn.uplink.journaled
        await asyncio.wait({task}, timeout=0.6)  # longer than a model may take
        assert not task.done()
        assert b'finish_reason":"stop' not in got.replace(b" ", b"")
        assert (b"ree" in got) is stream
        # The user's one place is free.
        other = await turn.ask("other")
        await eventually(lambda: len(turn.uplink.journaled) == 2)
        turn.uplink.acknowledge()
        await task
        assert b"ree" in got
        assert (b"[DONE]" in got) is stream
        await other.answer()


async def test_a_receipt_is_for_what_was_sent_before_the_word_came() -> None:
    receipts = Receipts()
    first = receipts.expect(1)
    receipts.stored(9)
    second = receipts.expect(2)
    assert (first.done(), second.done(), receipts.open) == (True, False, 1)
    gone = receipts.expect(3)
    gone.cancel()
    receipts.stored(3)
    assert second.done()
    assert receipts.open == 0
