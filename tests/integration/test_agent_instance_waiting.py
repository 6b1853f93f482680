"""agent_instance over real gRPC: the queue for a worker, questions to a person, later attempts, sub-agents."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from carrel import Agent, AgentContext, Request, tool
from carrel.v1 import agent_instance_pb2 as pb
from tests.conftest import Eventually
from tests.integration.agent_instance_support import Attempt, Deployment, deployment
from tests.support.awake import Awake


@tool
async def look(what: str) -> str:
    """Looks."""
    return what.upper()


@tool(approval="user")
async def pay(amount: int) -> int:
    """Pays."""
    return amount


class Sleeper(Agent):
    name = "sleeper"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("sleeping")
        await asyncio.sleep(30)
        return {}


class Helper(Agent):
    name = "helper"
    tools = (look,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"found": await ctx.call_tool("look", what=request.message)}


class Asker(Agent):
    name = "asker"
    tools = (look, pay)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        found = await ctx.run_agent("helper", "here")
        answer = await ctx.ask("Go on?", bool)
        paid = await ctx.call_tool("pay", amount=5)
        return {"found": found["found"], "answer": answer, "paid": paid}


class Parent(Agent):
    name = "parent"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return dict(await ctx.run_agent("sleeper"))


ALL = (Sleeper, Helper, Asker, Parent)


async def question(attempt: Attempt) -> pb.InputRequired:
    while (message := await attempt.read()) is not None:
        if message.HasField("input_required"):
            await attempt.call.done_writing()
            assert await attempt.read() is None
            return message.input_required
    raise AssertionError("the stream ended without a question")


async def following(here: Deployment, earlier: list[Attempt], inputs: list[pb.ProvidedInput]) -> Attempt:
    journal = [entry for attempt in earlier for entry in attempt.of("journal_entry")]
    return await here.start(
        "asker",
        context=earlier[0].context,
        number=len(earlier) + 1,
        journal=journal,
        inputs=inputs,
        quiet_until_input=inputs[-1].input_id,
    )


async def test_a_stage_asks_and_goes_on_in_later_attempts() -> None:
    async with deployment(*ALL) as here:
        first = await here.start("asker")
        asked = await question(first)
        assert (asked.input_id, asked.prompt, orjson.loads(asked.schema_json)) == (
            "ask-0-1",
            "Go on?",
            {"type": "boolean"},
        )
        kinds = here.kinds(first)
        assert kinds == [
            "agent_started",
            "agent_started",
            "tool_executing",
            "tool_completed",
            "agent_completed",
        ]
        assert asked.events_through == len(kinds)
        assert [entry.kind for entry in first.of("journal_entry")] == ["tool", "agent"]
        assert here.services.core.active == here.services.core.children_active == 0

        inputs = [pb.ProvidedInput(input_id=asked.input_id, value_json=b"true")]
        second = await following(here, [first], inputs)
        approval = await question(second)
        assert (approval.tool_name, orjson.loads(approval.arguments_json)) == ("pay", {"amount": 5})
        assert here.kinds(second) == []

        inputs.append(
            pb.ProvidedInput(
                input_id=approval.input_id, value_json=b'{"approved":true}', arguments_hash=approval.arguments_hash
            )
        )
        third = await following(here, [first, second], inputs)
        await third.finish()
        assert third.value == {"found": "HERE", "answer": True, "paid": 5}
        assert here.kinds(third) == ["tool_executing", "tool_completed", "agent_completed"]


async def test_waiting_for_a_worker_beats_and_can_be_cancelled(eventually: Eventually) -> None:
    async with deployment(*ALL, max_workers=1, heartbeat_s=0.05) as here:
        first = await here.start("sleeper")
        await first.read()
        second = await here.start("sleeper", user="bob")
        await eventually(lambda: here.services.core.waiting == 1)
        beat = await second.read()
        assert beat is not None
        assert beat.HasField("heartbeat")
        with Awake() as took:
            await second.send(cancel=pb.CancelStage(reason="not needed"))
            assert (await second.finish()).error.code == "CANCELLED_RUN"
        assert took.seconds < 0.5
        assert not second.of("accepted")
        assert here.services.core.waiting == 0
        first.call.cancel()
        await eventually(lambda: here.services.core.active == 0)


async def test_a_cancel_ends_a_sub_agents_worker_within_a_second(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("parent")
        await eventually(lambda: here.kinds(attempt) == ["agent_started", "agent_started", "agent_thinking"])
        assert here.services.core.children_active == 1
        with Awake() as took:
            await attempt.send(cancel=pb.CancelStage(reason="asked"))
            assert (await attempt.finish()).error.code == "CANCELLED_RUN"
        assert took.seconds < 1
        assert here.services.core.children_active == 0


async def test_a_lost_stream_ends_sub_agents_too(eventually: Eventually) -> None:
    async with deployment(*ALL) as here:
        attempt = await here.start("parent")
        await eventually(lambda: here.services.core.children_active == 1)
        attempt.call.cancel()
        await eventually(lambda: here.services.core.active == here.services.core.children_active == 0)


async def test_grants_are_taken_before_and_after_the_worker_is_there(eventually: Eventually) -> None:
    async with deployment(*ALL, max_workers=1) as here:
        first = await here.start("sleeper")
        await first.read()
        second = await here.start("helper", user="bob")
        await eventually(lambda: here.services.core.waiting == 1)
        await second.send(budget_grant=pb.BudgetGrant(tokens=5, concurrency=1))
        first.call.cancel()
        assert (await second.finish()).WhichOneof("outcome") == "result_json"
