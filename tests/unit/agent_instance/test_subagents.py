"""Agents run by agents: context, events, tools, limits, failure, cancellation, and what the journal keeps of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carrel import Agent, AgentContext, CarrelError, Request, tool
from carrel.errors import AgentError, WorkerLostError
from services.agent_instance.domain.roles import MAX_SUB_AGENTS
from services.agent_instance.workers.in_loop import InLoopExecutor
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.unit.agent_instance.support import Bench, Stage
from tests.unit.agent_instance.test_hostile_worker import Scripted

ran: list[str] = []
ended: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()
    ended.clear()


@tool
async def look(what: str) -> str:
    ran.append(what)
    return what.upper()


@tool
async def secret() -> str:
    return "only some"


class Child(Agent):
    name = "child"
    description = "Does a part."
    tools = (look, secret)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("at it")
        found = await ctx.call_tool("look", what=request.params.get("what", "x"))
        return {"found": found, "message": request.message, "tools": list(ctx.tools), "id": ctx.context.request_id}


class Parent(Agent):
    name = "parent"
    tools = (look,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        first = await ctx.run_agent("child", "please", params={"what": "a"})
        second = await ctx.run_agent("child", "please", params={"what": "b"})
        return {"first": dict(first), "second": dict(second)}


async def test_a_sub_agent_has_a_context_events_and_a_subset_of_tools_of_its_own() -> None:
    stage = await Bench(Parent, Child).run("parent")
    root = stage.caller.context.request_id
    assert stage.result["first"] == {"found": "A", "message": "please", "tools": ["look"], "id": f"{root}_child"}
    assert stage.result["second"]["id"] == f"{root}_child_2"
    one = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]
    assert stage.kinds == ["agent_started", *one, *one, "agent_completed"]
    assert [(event.agent, event.request_id) for event in stage.events[1:6]] == [("child", f"{root}_child")] * 5
    assert {event.request_id for event in stage.events[6:11]} == {f"{root}_child_2"}
    assert [entry.kind for entry in stage.uplink.journaled] == ["tool", "agent", "tool", "agent"]
    assert stage.bench.core.children_active == 0


class Caller(Agent):
    """Runs what its parameters say, and tells how it ended."""

    name = "caller"
    tools = (look,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            return {"value": dict(await ctx.run_agent(request.params["agent"], **request.params.get("options", {})))}
        except CarrelError as error:
            return {"error": error.code, "message": error.message, "agent_error": isinstance(error, AgentError)}


async def call(*agents: type[Agent], agent: str = "child", make: Any = None, **options: Any) -> Stage:
    bench = Bench(Caller, *agents, make=make)
    return await bench.run("caller", params={"agent": agent, "options": options})


async def test_tools_that_it_cannot_have_are_refused_before_it_begins() -> None:
    assert (await call(Child, tools=["secret"])).result["error"] == "TOOL_PERMISSION"
    assert (await call(Child, tools=["nothing"])).result["error"] == "UNKNOWN_TOOL"
    none = await call(Child, tools=[])
    assert none.result["error"] == "UNKNOWN_TOOL"
    assert "was not given" in none.result["message"]
    assert none.of("agent_error")[0].agent == "child"
    unknown = await call(agent="nobody")
    assert unknown.result["error"] == "UNKNOWN_AGENT"
    assert unknown.kinds == ["agent_started", "agent_completed"]


class Failing(Agent):
    name = "failing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise RuntimeError("no")


class Slow(Agent):
    name = "slow"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(ctx.context.request_id)
        return {}


class Stubborn(Agent):
    name = "stubborn"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for _ in range(2):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                ended.append("ignored")
        return {}


async def test_its_failure_is_an_error_that_its_parent_handles() -> None:
    stage = await call(Failing, agent="failing")
    assert (stage.result["error"], stage.result["agent_error"]) == ("AGENT_FAILED", True)
    assert stage.kinds == ["agent_started", "agent_started", "agent_error", "agent_completed"]
    again = await stage.again(params={"agent": "failing", "options": {}})
    assert again.result == stage.result
    assert again.of("agent_error")[0].data["replayed"] is True


async def test_it_has_a_time_limit_of_its_own() -> None:
    stage = await call(Slow, agent="slow", timeout_s=0.1)
    assert stage.result["error"] == "ENGINE_TIMEOUT"
    assert len(ended) == 1


async def test_a_lost_worker_is_its_parents_error_and_no_other_attempt() -> None:
    made = 0

    def make() -> Any:
        nonlocal made
        made += 1
        return InLoopExecutor() if made == 1 else Scripted([])

    bench = Bench(Caller, Child, make=make)
    stage = await bench.run("caller", params={"agent": "child"}, last_attempt=False)
    assert stage.result["error"] == "WORKER_LOST"
    assert stage.of("agent_error")[0].data["code"] == "WORKER_LOST"
    assert bench.core.counts.lost == 1


class Passing(Agent):
    name = "passing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise WorkerLostError("believe me")


async def test_an_agent_cannot_make_execution_try_again() -> None:
    stage = await Bench(Passing).run("passing", last_attempt=False)
    assert stage.error.code == "AGENT_FAILED"
    assert stage.kinds == ["agent_started", "agent_error"]


class Crowd(Agent):
    name = "crowd"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        many = request.params["many"]
        got = await asyncio.gather(
            *(ctx.run_agent("child", params={"what": f"w{n}"}) for n in range(many)), return_exceptions=True
        )
        codes = [item.code for item in got if isinstance(item, CarrelError)]
        return {"ids": [item["id"] for item in got if not isinstance(item, BaseException)], "codes": codes}


class Handy(Crowd):
    name = "handy"
    tools = (look,)


async def test_sub_agents_run_at_once_up_to_a_bound() -> None:
    stage = await Bench(Handy, Child).run("handy", params={"many": MAX_SUB_AGENTS})
    assert len(set(stage.result["ids"])) == MAX_SUB_AGENTS
    over = await Bench(Handy, Child).run("handy", params={"many": MAX_SUB_AGENTS + 3})
    assert len(over.result["ids"]) == MAX_SUB_AGENTS
    assert over.result["codes"] == ["LIMIT_EXCEEDED"] * 3


class Endless(Agent):
    name = "endless"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"deeper": dict(await ctx.run_agent("endless"))}


async def test_agents_that_run_one_another_without_end_are_stopped() -> None:
    stage = await Bench(Endless).run("endless")
    assert stage.error.code == "LIMIT_EXCEEDED"
    assert len(stage.of("agent_started")) == 5
    assert stage.bench.core.children_active == 0


class Watching(Agent):
    name = "watching"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(0.1):
                await ctx.run_agent("slow")
        except TimeoutError:
            await asyncio.sleep(0.1)
        return {}


async def test_leaving_the_call_ends_the_sub_agent(eventually: Eventually) -> None:
    stage = await Bench(Watching, Slow).run("watching")
    assert stage.result == {}
    assert len(ended) == 1
    assert stage.kinds == ["agent_started", "agent_started", "agent_error", "agent_completed"]
    assert stage.of("agent_error")[0].data["code"] == "CANCELLED_RUN"
    await eventually(lambda: stage.bench.core.children_active == 0)


class Leaving(Agent):
    name = "leaving"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        self.kept = asyncio.create_task(ctx.run_agent("slow"))
        await asyncio.sleep(0.05)
        return {}


async def test_sub_agents_end_with_their_parent_and_before_its_last_event() -> None:
    stage = await Bench(Leaving, Slow).run("leaving")
    assert stage.result == {}
    assert len(ended) == 1
    assert stage.kinds[-2:] == ["agent_error", "agent_completed"]
    assert stage.bench.core.children_active == 0


class Family(Agent):
    name = "family"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await asyncio.gather(*(ctx.run_agent(name) for name in ("middle", "slow", "stubborn")))
        return {}


class Middle(Agent):
    name = "middle"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return dict(await ctx.run_agent("slow"))


async def test_a_cancel_reaches_children_of_children_at_once_and_all_are_gone_in_time(eventually: Eventually) -> None:
    stage = await Bench(Family, Middle, Slow, Stubborn).stage("family")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: len(stage.of("agent_started")) == 5)
    with Awake() as took:
        stage.attempt.cancel("asked")
        await eventually(lambda: len(ended) == 3)
        assert took.seconds < 0.2
        outcome = await task
    assert took.seconds < 1
    assert outcome.error is not None
    assert outcome.error.code == "CANCELLED_RUN"
    assert stage.kinds == ["agent_started"] * 5
    assert stage.bench.core.children_active == 0


class Patient(Agent):
    name = "patient"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return dict(await ctx.run_agent("chatty"))


class Chatty(Agent):
    name = "chatty"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for n in range(12):
            await ctx.thinking(f"{n}")
            await asyncio.sleep(0.1)
        return {"done": True}


class Silent(Slow):
    name = "chatty"


async def test_a_sub_agent_at_work_is_activity_of_its_parent_and_its_own_idleness_its_own() -> None:
    assert (await Bench(Patient, Chatty, idle_s=1.0).run("patient")).result == {"done": True}
    idle = await Bench(Patient, Silent, idle_s=0.3).run("patient")
    assert [event.agent for event in idle.of("agent_error")] == ["chatty", "patient"]
    assert idle.error.code == "AGENT_IDLE_TIMEOUT"


async def test_nobody_speaks_for_an_agent_whose_sub_agent_speaks() -> None:
    stage = await Bench(Patient, Chatty, periodic_s=1.0).run("patient")
    assert not [event for event in stage.of("agent_thinking") if event.data.get("heartbeat")]
    silent = await Bench(Patient, Silent, periodic_s=0.1, idle_s=1.0).run("patient")
    assert {event.agent for event in silent.of("agent_thinking") if event.data.get("heartbeat")} == {"patient"}


class Asking(Agent):
    name = "asking"
    tools = (look,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.call_tool("look", what="before")
        return {"answer": await ctx.ask("Well?")}


class Both(Agent):
    name = "both"
    tools = (look,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        asked, done = await asyncio.gather(ctx.run_agent("asking"), ctx.run_agent("child", params={"what": "side"}))
        return {"answer": asked["answer"], "found": done["found"], "own": await ctx.call_tool("look", what="before")}


async def test_a_question_of_a_sub_agent_is_the_runs_and_its_siblings_end_first() -> None:
    first = await Bench(Both, Asking, Child).run("both")
    assert first.question.prompt == "Well?"
    assert sorted(ran) == ["before", "side"]
    second = await first.again("fine")
    assert second.result == {"answer": "fine", "found": "SIDE", "own": "BEFORE"}
    # The finished sibling and the asker's tool were answered from the journal; the parent's own call is its own.
    assert sorted(ran) == ["before", "before", "side"]
    root = second.caller.context.request_id
    completed = [(event.agent, event.request_id) for event in second.of("agent_completed")]
    assert completed == [("asking", f"{root}_asking"), ("both", root)]
    assert second.bench.core.children_active == 0


async def test_the_answer_is_found_when_the_repeated_attempt_runs_them_in_another_order() -> None:
    class Turned(Both):
        name = "both"

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            names = ("asking", "child") if request.attempt == 1 else ("child", "asking")
            got = await asyncio.gather(*(ctx.run_agent(name, params={"what": "side"}) for name in names))
            return {"ok": all(got)}

    first = await Bench(Turned, Asking, Child).run("both")
    assert (await first.again("fine")).result == {"ok": True}
    assert sorted(ran) == ["before", "side"]


async def test_what_a_sub_agents_worker_printed_is_kept() -> None:
    made = 0

    def make() -> Any:
        nonlocal made
        made += 1
        if made == 1:
            return InLoopExecutor()
        worker = Scripted([])
        worker.printed = b"Segmentation fault\n"
        return worker

    stage = await call(Child, make=make)
    assert stage.uplink.stored["output-0-1-child.txt"] == b"Segmentation fault\n"
