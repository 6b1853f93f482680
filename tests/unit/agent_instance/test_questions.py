"""A stage that asks its user: it ends for the question, and the next attempt goes on over its journal, quietly."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import orjson
import pytest

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import ApprovalDeniedError, InvalidRequestError
from services.agent_instance.domain.dispatcher import DispatchStrategy
from services.agent_instance.domain.questions import APPROVAL_SCHEMA, StageQuestions, approval_question
from services.agent_instance.models import AuditOutcome, ProvidedInput, Question
from tests.conftest import Eventually
from tests.unit.agent_instance.support import Bench, call_id

ran: list[Any] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    ran.clear()


@tool
async def count(n: int) -> int:
    ran.append(n)
    return n


@tool
async def slow(n: int) -> int:
    await asyncio.sleep(0.1)
    ran.append(n)
    return n


@tool
async def inquire(ctx: AgentContext, about: str) -> str:
    """Asks within a tool."""
    ran.append(about)
    value = await ctx.call_tool("count", n=7)
    return f"{await ctx.ask(f'What of {about}?')} {value}"


@tool(approval="user")
async def pay(amount: int) -> str:
    """Pays."""
    ran.append(amount)
    return f"paid {amount}"


@tool(timeout_s=0.15)
async def brief(ctx: AgentContext) -> str:
    return str(await ctx.ask("Still there?"))


TOOLS = (count, slow, inquire, pay, brief)


class Asker(Agent):
    name = "asker"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("before")
        first = await ctx.call_tool("count", n=1)
        said = await ctx.message(delta="Shall I")
        answer = await ctx.ask("Go on?", choices=["yes", "no"])
        await ctx.message(delta=f": {answer}", message_id=said)
        return {"answer": answer, "first": first}


async def test_the_attempt_ends_with_the_question_and_the_next_goes_on_from_it() -> None:
    first = await Bench(Asker).run("asker")
    question = first.question
    assert (question.input_id, question.prompt, question.arguments_hash) == ("ask-0-1", "Go on?", "")
    assert orjson.loads(question.schema) == {"type": "string", "enum": ["yes", "no"]}
    assert first.outcome is not None
    assert first.outcome.events_through == len(first.events)
    before = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_message"]
    assert first.kinds == before
    second = await first.again("yes")
    assert second.result == {"answer": "yes", "first": 1}
    # All that led to the question is in the log already; the message goes on under its id.
    assert second.kinds == ["agent_message", "agent_completed"]
    assert second.events[0].data["message_id"] == first.of("agent_message")[0].data["message_id"]
    assert ran == [1]
    assert len(first.uplink.audited) == 1
    assert not second.uplink.audited
    assert not second.uplink.journaled


async def test_the_worker_is_given_back_while_the_run_waits(caplog: pytest.LogCaptureFixture) -> None:
    stage = await Bench(Asker).run("asker")
    assert not [record for record in caplog.records if "without a word" in record.getMessage()], "it was not lost"
    assert stage.bench.core.counts.lost == stage.bench.core.counts.killed == 0
    assert stage.instance is not None
    await stage.bench.core.drop(stage.instance)
    assert stage.bench.core.active == 0


class Several(Agent):
    name = "several"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        async def child() -> Any:
            async with ctx.child("part") as part:
                return await part.ask("Third?")

        both = await asyncio.gather(ctx.ask("First?"), ctx.ask("Second?"), child(), ctx.call_tool("slow", n=1))
        return {"all": both}


async def test_what_is_under_way_ends_first_and_several_questions_come_one_after_another() -> None:
    first = await Bench(Several).run("several")
    assert first.question.prompt == "First?"
    assert ran == [1]  # the slow tool was let end, and is in the journal
    second = await first.again("a")
    assert second.question.prompt == "Second?"
    third = await second.again("b")
    assert third.question.prompt == "Third?"
    last = await third.again("c")
    assert last.result == {"all": ["a", "b", "c", 1]}
    assert ran == [1]


class Inside(Agent):
    name = "inside"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"value": await ctx.call_tool("inquire", about="it"), "again": await ctx.call_tool("count", n=7)}


@pytest.mark.parametrize("strategy", DispatchStrategy)
async def test_a_tool_that_asks_runs_again_up_to_its_question(strategy: DispatchStrategy) -> None:
    first = await Bench(Inside, strategy=strategy).run("inside")
    assert first.question.prompt == "What of it?"
    assert first.kinds == ["agent_started", "tool_executing", "tool_executing", "tool_completed"]
    second = await first.again("all is well")
    assert second.result == {"value": "all is well 7", "again": 7}
    # The call within the body was answered from the journal; the agent's own of the same kind is another call.
    assert ran == ["it", 7, "it", 7]
    assert [event.data["tool_name"] for event in second.of("tool_completed")] == ["inquire", "count"]


class Spender(Agent):
    name = "spender"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        try:
            return {"paid": await ctx.call_tool("pay", amount=request.params.get("amount", 5))}
        except ApprovalDeniedError as error:
            return {"denied": error.message}


async def test_a_tool_that_needs_approval_runs_once_its_user_has_allowed_it() -> None:
    first = await Bench(Spender).run("spender")
    question = first.question
    assert question.tool_name == "pay"
    assert question.arguments_hash
    assert orjson.loads(question.arguments) == {"amount": 5}
    assert orjson.loads(question.schema) == APPROVAL_SCHEMA
    assert question.input_id == f"approve-{call_id('pay', amount=5)}-{question.arguments_hash[:8]}"
    assert first.kinds == ["agent_started"]
    assert not ran
    second = await first.again(True)
    assert second.result == {"paid": "paid 5"}
    assert second.kinds == ["tool_executing", "tool_completed", "agent_completed"]
    assert ran == [5]


async def test_a_tool_that_its_user_did_not_allow_never_runs() -> None:
    first = await Bench(Spender).run("spender")
    second = await first.again({"approved": False, "reason": "too much"})
    assert second.result == {"denied": "the user did not allow pay: too much"}
    assert second.kinds == ["tool_completed", "agent_completed"]
    assert second.of("tool_completed")[0].data["denied"] is True
    assert second.uplink.audited[0].outcome is AuditOutcome.DENIED
    assert not ran


@pytest.mark.parametrize("answer", [False, {"approved": False}, "yes", 1, None, {}, []])
async def test_only_a_plain_yes_is_a_yes(answer: Any) -> None:
    second = await (await Bench(Spender).run("spender")).again(answer)
    assert "denied" in second.result
    assert not ran


async def test_an_approval_is_for_its_arguments_and_asked_anew_for_others() -> None:
    first = await Bench(Spender).run("spender")
    second = await first.again(True, params={"amount": 500})
    assert orjson.loads(second.question.arguments) == {"amount": 500}
    assert second.question.input_id != first.question.input_id
    assert not ran


async def test_an_answer_under_the_same_id_for_other_arguments_is_no_approval() -> None:
    first = await Bench(Spender).run("spender")
    other = ProvidedInput(first.question.input_id, b"true", "0" * 64)
    second = await Bench(Spender).run("spender", attempt=2, inputs=(other,), caller=first.caller)
    assert second.question.input_id != first.question.input_id
    assert second.question.arguments_hash == first.question.arguments_hash
    assert not ran


async def test_a_fallback_begins_without_the_questions_of_the_agent_before_it() -> None:
    questions = StageQuestions(0, (), lambda _: None)
    questions.ask(Question("ask-0-1", "?", b"{}"), None, nullcontext())
    settled = questions.settled
    questions.restart()
    assert questions.settled is not settled
    done, _ = await asyncio.wait({questions.settled, settled}, timeout=0.1)
    assert not done


def test_large_arguments_are_shown_by_their_beginnings() -> None:
    arguments = {"text": "x" * 50_000, "rows": list(range(5000)), **{f"n{n}": "y" * 500 for n in range(100)}}
    question = approval_question("approve-1", pay, arguments, "hash")
    assert len(question.arguments) <= 8 * 1024
    shown = orjson.loads(question.arguments)
    assert shown["text"].startswith("xxx")
    assert shown["rows"].startswith("[0,1,2")
    assert "left out" in shown["…"]


class Late(Agent):
    name = "late"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        both = await asyncio.gather(ctx.call_tool("brief"), *(ctx.call_tool("slow", n=n) for n in range(3)))
        return {"all": both}


async def test_no_clock_runs_for_what_waits_for_its_user() -> None:
    # One after another the slow ones take longer than the tool that asks may, and than the agent may be idle.
    bench = Bench(Late, strategy=DispatchStrategy.CONCURRENT, concurrency=2, idle_s=0.2)
    first = await bench.run("late")
    assert first.question.prompt == "Still there?"
    assert sorted(ran) == [0, 1, 2]
    assert (await first.again("yes")).result == {"all": ["yes", 0, 1, 2]}


class Impatient(Agent):
    name = "impatient"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        keep = asyncio.create_task(ctx.call_tool("slow", n=1))
        try:
            async with asyncio.timeout(0.02):
                await ctx.ask("Quick?")
        except TimeoutError:
            await keep
            return {"asked": False}
        return {}


async def test_a_question_that_nobody_waits_for_any_more_ends_nothing() -> None:
    stage = await Bench(Impatient).run("impatient")
    assert stage.result == {"asked": False}


class Forgetful(Agent):
    name = "forgetful"
    tools = TOOLS

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("again")
        if request.attempt == 1:
            await ctx.ask("Once?")
        return {"attempt": request.attempt}


async def test_an_agent_that_does_not_ask_again_ends_its_quiet_with_its_last_event() -> None:
    first = await Bench(Forgetful).run("forgetful")
    second = await first.again("yes")
    assert second.result == {"attempt": 2}
    assert second.kinds == ["agent_completed"]


class Breaking(Agent):
    name = "breaking"
    fallback = "asker"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        if request.params.get("ask"):
            await ctx.ask("Before?")
        raise RuntimeError("no")


async def test_a_fallback_that_asks_goes_on_quietly_too() -> None:
    first = await Bench(Breaking, Asker).run("breaking")
    assert first.question.input_id.startswith("ask-0-fb-")
    assert first.kinds[:3] == ["agent_started", "agent_error", "agent_started"]
    second = await first.again("no")
    assert second.result["answer"] == "no"
    assert second.kinds == ["agent_message", "agent_completed"]
    assert ran == [1]


async def test_the_answers_of_one_agent_are_not_its_fallbacks() -> None:
    first = await Bench(Breaking, Asker).run("breaking", params={"ask": True})
    assert first.question.prompt == "Before?"
    second = await first.again("yes", params={"ask": True})
    assert second.question.prompt == "Go on?"
    assert second.kinds[:2] == ["agent_error", "agent_started"]


class Wordy(Agent):
    name = "wordy"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        for prompt, schema in (("", {}), ("x" * 9000, {}), ("?", {"description": "y" * 20_000})):
            with pytest.raises(InvalidRequestError):
                await ctx.ask(prompt, schema)
        return {}


async def test_a_question_that_cannot_be_shown_is_refused() -> None:
    assert (await Bench(Wordy).run("wordy")).result == {}


async def test_a_cancel_beats_a_question(eventually: Eventually) -> None:
    stage = await Bench(Several).stage("several")
    task = asyncio.create_task(stage.run())
    await eventually(lambda: "tool_executing" in stage.kinds)
    stage.attempt.cancel("asked")
    outcome = await task
    assert outcome.question is None
    assert outcome.error is not None
    assert outcome.error.code == "CANCELLED_RUN"


async def test_a_question_waits_for_the_log_like_a_result(eventually: Eventually) -> None:
    stage = await Bench(Asker).stage("asker")
    stage.producer.open.clear()
    task = asyncio.create_task(stage.run())
    await eventually(lambda: stage.of("agent_message"))
    done, _ = await asyncio.wait({task}, timeout=0.1)
    assert not done
    stage.producer.open.set()
    assert (await task).question is not None
