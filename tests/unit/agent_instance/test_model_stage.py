"""Agents that ask a model, through a whole stage: their own words, tools, children, budgets, repeated attempts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import ModelBudgetError, ModelRefusedError, ModelUnavailableError
from services.agent_instance.models import AuditOutcome, BudgetGrant, BudgetUse
from tests.conftest import Eventually
from tests.support.model_server import CallTools, Fail, Hang, ModelServer, Say, Step
from tests.unit.agent_instance.model_support import bench as model_bench
from tests.unit.agent_instance.support import Bench

BODIES: list[str] = []


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    BODIES.append(f"add {a} {b}")
    return a + b


@tool
async def breaks() -> int:
    """Break."""
    raise RuntimeError("no")


@tool(host=True)
async def summarize(ctx: AgentContext, text: str) -> str:
    """Summarize in the service."""
    assert ctx.llm.available
    return (await ctx.llm.chat(text)).text


@tool(permission="vault:open")
async def vault() -> str:
    """Open the vault."""
    return "gold"


class Talker(Agent):
    name = "talker"
    tools = (add, breaks, summarize, vault)
    dependencies = ()

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        done = await ctx.llm.converse(request.message)
        return {"text": done.text, "turns": done.turns}


class Streamer(Agent):
    name = "streamer"

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        stream = ctx.llm.stream(request.message, speak="message")
        return {"pieces": [piece async for piece in stream], "finish": stream.reply.finish_reason}


class Careful(Agent):
    """Takes every error of a model for what it is."""

    name = "careful"

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(request.params.get("timeout", 10)):
                return {"text": (await ctx.llm.chat(request.message)).text}
        except (ModelBudgetError, ModelRefusedError, ModelUnavailableError) as error:
            return {"code": error.code, "details": error.details}
        except TimeoutError:
            return {"code": "own timeout"}


class Crashes(Agent):
    """Asks twice, and fails in its first attempt between the two."""

    name = "crashes"

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        one = await ctx.llm.chat("one", speak="message")
        async with ctx.child("part") as child:
            two = await child.llm.chat("one", speak="thinking")
        if ctx.attempt == 1:
            raise RuntimeError("crash")
        three = await ctx.llm.chat("three", speak="message")
        return {"texts": [one.text, two.text, three.text], "replayed": [one.replayed, two.replayed, three.replayed]}


class Asks(Agent):
    """Talks, asks its user, and talks on."""

    name = "asks"

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        before = await ctx.llm.chat("before", speak="message")
        answer = await ctx.ask("sure?", {"type": "boolean"})
        after = await ctx.llm.chat("after", speak="message")
        return {"texts": [before.text, after.text], "answer": answer}


AGENTS = (Talker, Streamer, Careful, Crashes, Asks)


@pytest.fixture(autouse=True)
def _no_bodies_of_others() -> None:
    BODIES.clear()


@dataclasses.dataclass
class Both:
    stages: Bench
    server: ModelServer

    async def run(self, agent: str, **changes: Any) -> Any:
        return await self.stages.run(agent, **changes)


@asynccontextmanager
async def talking(*script: Step, **options: Any) -> AsyncIterator[Both]:
    async with model_bench(*script) as models:
        stages = Bench(*AGENTS, **options)
        stages.services = dataclasses.replace(stages.services, models=models.desk)
        yield Both(stages, models.server)
        assert models.desk.gates.running == models.desk.gates.waiting == 0


async def test_an_agent_talks_with_tools_and_its_user_sees_it_all() -> None:
    async with talking(CallTools(("add", {"a": 2, "b": 3}), ("breaks", {}), text="Let me see."), Say("It is 5.")) as t:
        stage = await t.run("talker", message="2 + 3?", permissions=frozenset())
    assert stage.result == {"text": "It is 5.", "turns": 2}
    assert BODIES == ["add 2 3"]
    kinds = [kind for kind in stage.kinds if kind != "agent_message"]
    assert kinds[:3] == ["agent_started", "tool_executing", "tool_executing"]
    assert stage.of("agent_message")[0].data["delta"] == "Let me see."
    assert len({event.data["message_id"] for event in stage.of("agent_message")}) == 2
    offered = [item["function"]["name"] for item in t.server.requests[0].body["tools"]]
    assert offered == ["add", "breaks", "summarize"]  # the vault is not this user's to open
    told = {m["tool_call_id"]: m["content"] for m in t.server.requests[1].body["messages"] if m["role"] == "tool"}
    assert told["call_0"] == "5"
    assert told["call_1"].startswith("error: tool breaks failed: RuntimeError")
    assert {record.action for record in stage.uplink.audited} == {"tool.call", "model.call"}
    assert {entry.kind for entry in stage.uplink.journaled} == {"tool", "model"}
    assert len(stage.uplink.used) == 2


async def test_a_tool_of_the_services_own_asks_the_model_too() -> None:
    async with talking(CallTools(("summarize", {"text": "long"})), Say("short"), Say("done")) as t:
        stage = await t.run("talker")
    assert stage.result["text"] == "done"
    assert t.server.requests[2].body["messages"][-1]["content"] == "short"


async def test_a_tool_that_is_not_permitted_is_refused_if_the_model_calls_it_anyway() -> None:
    async with talking(CallTools(("vault", {})), Say("No gold.")) as t:
        stage = await t.run("talker", permissions=frozenset())
        assert stage.result["text"] == "No gold."
        assert "permission" in t.server.requests[1].body["messages"][-1]["content"]
    assert AuditOutcome.DENIED in {record.outcome for record in stage.uplink.audited}


async def test_a_stream_comes_in_pieces_to_the_agent_and_to_the_user() -> None:
    async with talking(Say("one two three", pieces=3, delay_s=0.06)) as t:
        stage = await t.run("streamer")
    assert "".join(stage.result["pieces"]) == "one two three"
    assert len(stage.result["pieces"]) == 3
    assert "".join(e.data["delta"] for e in stage.of("agent_message")) == "one two three"


async def test_errors_are_the_agents_to_handle() -> None:
    async with talking(Fail(500), Fail(400, "too long")) as t:
        assert (await t.run("careful")).result["code"] == "MODEL_UNAVAILABLE"
        refused = (await t.run("careful")).result
        assert refused["code"] == "MODEL_REFUSED"
        assert refused["details"]["endpoint_says"] == "too long"


async def test_an_error_that_the_agent_does_not_handle_is_its_failure() -> None:
    async with talking(Fail(400, "no")) as t:
        stage = await t.run("streamer")
    assert isinstance(stage.error, ModelRefusedError)
    assert stage.of("agent_error")[0].data["code"] == "MODEL_REFUSED"


async def test_the_grant_bounds_the_stage_and_a_fresh_one_goes_on() -> None:
    async with talking(Say("a b c")) as t:
        stage = await t.run("careful", budget=BudgetGrant(0, 2, renews_at=4e9))
        assert stage.result["code"] == "MODEL_BUDGET"
        assert stage.result["details"]["limit"] == "model_tokens"
        assert t.server.requests == []
        fresh = await t.run("careful", budget=BudgetGrant(10, 2))
        assert fresh.result == {"text": "a b c"}
        assert fresh.uplink.used == [BudgetUse("small", 1, 3)]


async def test_an_agents_own_timeout_aborts_the_request(eventually: Eventually) -> None:
    async with talking(Hang()) as t:
        stage = await t.run("careful", params={"timeout": 1.0})
        assert stage.result == {"code": "own timeout"}
        await eventually(lambda: t.server.aborted == 1)


async def test_a_cancelled_run_aborts_the_request(eventually: Eventually) -> None:
    async with talking(Hang()) as t:
        stage = await t.stages.stage("careful")
        running = asyncio.create_task(stage.run())
        await eventually(lambda: t.server.open == 1)
        stage.attempt.cancel("enough")
        outcome = await running
        assert outcome.error is not None
        assert outcome.error.code == "CANCELLED_RUN"
        await eventually(lambda: t.server.aborted == 1)


async def test_a_silent_model_is_activity_until_its_own_limit() -> None:
    async with talking(Say("late", pieces=1, delay_s=0.6), idle_s=0.2) as t:
        stage = await t.run("careful")
        assert stage.result == {"text": "late"}  # not ended by its idle limit: its model was at work


async def test_a_repeated_attempt_asks_only_what_it_had_not_asked() -> None:
    async with talking(Say("first"), Say("second"), Say("third")) as t:
        first = await t.run("crashes")
        assert first.outcome.error is not None
        again = await first.again()
        assert again.result == {"texts": ["first", "second", "third"], "replayed": [True, True, False]}
        assert len(t.server.requests) == 3
        assert len(again.uplink.used) == 1
        ids = [[e.data["message_id"] for e in stage.of("agent_message")] for stage in (first, again)]
        assert set(ids[0]) <= set(ids[1])
        assert again.of("agent_message")[0].data["text"] == "first"
        child = again.of("agent_thinking")[0]
        assert child.request_id != again.caller.context.request_id


async def test_after_a_question_nothing_is_said_or_paid_twice() -> None:
    async with talking(Say("before"), Say("after")) as t:
        first = await t.run("asks")
        assert first.question.prompt == "sure?"
        again = await first.again(True)
        assert again.result == {"texts": ["before", "after"], "answer": True}
        assert "".join(e.data.get("text") or e.data["delta"] for e in again.of("agent_message")) == "after"
        assert len(t.server.requests) == 2
        assert len(again.uplink.used) == 1


async def test_without_a_model_the_agent_is_told_so() -> None:
    stages = Bench(*AGENTS)
    stage = await stages.run("careful")
    assert stage.result["code"] == "MODEL_UNAVAILABLE"
