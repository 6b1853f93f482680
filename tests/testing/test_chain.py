"""The in-memory chain holds agents to the services' rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from carrel import Agent
from carrel.client import RunState
from carrel.errors import (
    ApprovalDeniedError,
    CancelledRunError,
    EnginesLimitError,
    InvalidInputError,
    InvalidRequestError,
    ModelBudgetError,
    PermissionDeniedError,
    StartupError,
    ThreadBusyError,
    ToolError,
    UnknownAgentError,
    UnmetRequirementError,
)
from carrel.testing import CallTools, Chain, ChainOptions, ScriptedModel, in_memory_chain, run_agent
from tests.testing import desk_agents
from tests.testing.desk_agents import ALL, SECRET, Adder, Chat, Slow


@pytest_asyncio.fixture
async def chain() -> AsyncIterator[Chain]:
    desk_agents.drawn.clear()
    async with in_memory_chain(*ALL) as chain:
        yield chain


async def test_a_run_tells_its_events_in_order_and_gives_its_result(chain: Chain) -> None:
    run = await chain.run("go", agent="adder", params={"a": 1, "b": 2})

    assert run.state is RunState.SUCCEEDED
    assert run.result == {"sum": 3, "history": []}
    run.events.assert_kinds(
        "run_accepted",
        "agent_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "agent_completed",
        "run_completed",
    )
    assert run.events.one("tool_completed").data["result"] == 3
    assert [event.offset for event in run.events] == list(range(1, 8))


async def test_a_tools_arguments_are_held_to_its_schema(chain: Chain) -> None:
    run = await chain.run("go", agent="adder", params={"a": "one", "b": 2})

    assert run.state is RunState.FAILED
    assert isinstance(run.error, InvalidRequestError | ToolError)
    with pytest.raises(AssertionError, match=r"the run has no result: it is FAILED, (.|\n)*agent_error"):
        _ = run.result


async def test_a_tool_needs_its_permission_and_the_audit_says_who_was_denied(chain: Chain) -> None:
    denied = await chain.run("go", agent="vault")
    allowed = await chain.run("go", agent="vault", permissions=["vault:*"])

    assert isinstance(denied.error, PermissionDeniedError)
    assert allowed.result == {"vault": {"gold": 7}}
    assert [(record.target, record.outcome) for record in await denied.audit()] == [("open_vault", "denied")]


async def test_secrets_are_taken_out_of_events(chain: Chain) -> None:
    run = await chain.run("go", agent="leaky")

    assert run.result == {"host": "db-1"}
    run.assert_no_secret(SECRET)
    assert run.events.one("tool_completed").data["result"]["api_key"] != SECRET


async def test_questions_and_approvals_wait_and_the_journal_answers_what_was_done(chain: Chain) -> None:
    run = await chain.start("bob@example.com", agent="mailer")
    asked = await run.question()
    with pytest.raises(InvalidInputError):
        await run.answer("blue", asked)
    await run.answer("red", asked)
    approval = await run.question()

    assert approval.approval
    assert approval.arguments == {"to": "bob@example.com"}
    assert run.state is RunState.WAITING
    with pytest.raises(AssertionError, match="waits for an answer"):
        await run.ended()
    await run.answer(True)
    await run.ended()
    assert run.result == {"lot": 1, "colour": "red", "sent": "bob@example.com"}
    assert desk_agents.drawn == ["lot", "bob@example.com"]


async def test_answers_can_be_given_ahead_and_an_approval_denied(chain: Chain) -> None:
    run = await chain.run("bob@example.com", agent="mailer", answers=["green", False])

    assert isinstance(run.error, ApprovalDeniedError)
    assert desk_agents.drawn == ["lot"]


async def test_a_lost_worker_is_tried_again_over_the_journal(chain: Chain) -> None:
    run = await chain.start("go", agent="slow")
    await run.told("agent_thinking", text="waiting")
    assert await chain.lose_workers() == 1
    await run.ended()

    assert run.result == {"attempt": 2}
    run.events.assert_order("agent_thinking", "run_attempt", "agent_started", "run_completed")
    assert desk_agents.drawn == ["lot"]


async def test_a_cancelled_run_ends_as_cancelled(chain: Chain) -> None:
    run = await chain.start("go", agent="slow")
    await run.cancel("not needed")

    assert run.state is RunState.CANCELLED
    assert isinstance(run.error, CancelledRunError)
    assert run.events[-1].data["status"] == "CANCELLED"


async def test_a_plan_runs_its_stages_and_keeps_the_artifact(chain: Chain) -> None:
    run = await chain.run("report")

    assert [stage.agent_name for stage in run.stages] == ["supervisor", "adder", "writer"]
    assert run.result == {"report": "the sum is 42"}
    assert await run.artifact("report.txt") == b"42\n"


async def test_a_pipeline_must_name_what_its_agents_require(chain: Chain) -> None:
    with pytest.raises(UnmetRequirementError):
        await chain.run("report", pipeline=["writer"])
    with pytest.raises(UnknownAgentError):
        await chain.run("report", agent="nobody")


async def test_a_sub_agent_has_events_of_its_own_under_its_parents_request(chain: Chain) -> None:
    run = await chain.run("go", agent="lead")

    assert run.result["sum"] == 3
    child, parent = run.events.one("agent_started", agent="adder"), run.events.one("agent_started", agent="lead")
    assert child.request_id.startswith(f"{parent.request_id}_")


async def test_a_fallback_answers(chain: Chain) -> None:
    run = await chain.run("go", agent="broken", params={"a": 1, "b": 1})

    assert run.result["sum"] == 2
    assert run.events.one("agent_error").data["recovered"] is True


async def test_users_see_their_own_threads_and_limits_only(chain: Chain) -> None:
    first = await chain.run("one", agent="adder", params={"a": 1, "b": 2}, thread="thread-of-both")
    again = await chain.run("two", agent="adder", params={"a": 1, "b": 2}, thread="thread-of-both")
    other = await chain.run("three", agent="adder", params={"a": 1, "b": 2}, thread="thread-of-both", user="bob")

    assert again.result["history"][0] == "one"
    assert other.result["history"] == []
    assert {event.user_id for event in other.events} == {"bob"}
    assert {event.run_id for event in first.events} == {first.run_id}


async def test_admission_has_the_services_limits(chain: Chain) -> None:
    one = await chain.start("go", agent="slow", thread="thread-one")
    with pytest.raises(ThreadBusyError):
        await chain.start("go", agent="slow", thread="thread-one")
    with pytest.raises(EnginesLimitError):
        await chain.start("go", agent="slow", limits={"max_engines_per_user": 1})
    with pytest.raises(InvalidRequestError, match="breaks its rules"):
        await chain.start("go", agent="slow", client_ref="a b")
    await one.cancel()


async def test_a_run_that_does_not_end_in_time_says_what_it_told(chain: Chain) -> None:
    run = await chain.start("go", agent="slow")
    await run.told("agent_thinking")
    with pytest.raises(AssertionError, match=r"did not end within 0.2 s: it is RUNNING. It told:(.|\n)*waiting"):
        await run.ended(timeout_s=0.2)


async def test_a_silent_agent_is_ended() -> None:
    async with in_memory_chain(Slow, options=ChainOptions(idle_timeout_s=0.1)) as chain:
        run = await chain.run("go")

    assert run.error is not None
    assert run.error.code == "AGENT_IDLE_TIMEOUT"


async def test_model_calls_run_through_the_tools_and_are_heard() -> None:
    model = ScriptedModel(CallTools(("add", {"a": 40, "b": 2})), "It is 42.")
    async with in_memory_chain(Chat, model=model) as chain:
        run = await chain.run("40 + 2?")

    assert run.result == {"answer": "It is 42."}
    assert run.events.text == "It is 42."
    run.events.assert_order("tool_executing", "tool_completed", "agent_message", "agent_completed")
    assert model.requests[1].body["messages"][-1]["role"] == "tool"
    model.assert_finished()


async def test_model_calls_cost_the_users_budget() -> None:
    async with in_memory_chain(Chat, model=ScriptedModel(), options=ChainOptions(model_tokens=0)) as chain:
        run = await chain.run("hello")

    assert isinstance(run.error, ModelBudgetError)


async def test_wrong_agents_are_refused_as_at_a_start() -> None:
    with pytest.raises(StartupError, match="requires 'nobody'"):
        async with in_memory_chain(type("Lost", (Adder,), {"name": "lost", "requires": ("nobody",)})):
            pass
    with pytest.raises(StartupError, match="no_such_module"):
        async with in_memory_chain("no_such_module"):
            pass


async def test_agents_are_found_by_name() -> None:
    async with in_memory_chain("tests.testing.desk_agents:ALL") as chain:
        assert (await chain.run("go", agent="adder", params={"a": 1, "b": 2})).result["sum"] == 3


def test_it_needs_no_pytest_and_what_still_runs_ends_with_the_chain() -> None:
    async def main() -> None:
        async with in_memory_chain(Slow) as chain:
            await chain.start("go")
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    run = asyncio.run(run_agent(Adder, params={"a": 1, "b": 2}))
    assert run.result["sum"] == 3


def test_a_class_from_a_prompt_is_taken() -> None:
    made: dict[str, type[Agent]] = {}
    code = """
class Typed(Agent):
    name = "typed"
    async def run(self, ctx, request):
        return {"ok": True}
"""
    exec(code, {"Agent": Agent, "__name__": "__main__"}, made)
    assert asyncio.run(run_agent(made["Typed"])).result == {"ok": True}
