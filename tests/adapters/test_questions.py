"""Questions of other libraries' agents are bound to what they are about, and say it."""

from __future__ import annotations

from typing import Any

import pydantic_ai as pydantic_library
import pytest
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from carrel import Agent, AgentContext, Request
from carrel.adapters import _questions, pydantic_ai
from tests.adapters.patience import bench
from tests.unit.agent_instance.support import Stage


def asked(stage: Stage) -> Any:
    """What the user is asked."""
    assert stage.outcome is not None
    assert stage.outcome.question is not None
    return stage.outcome.question


async def test_an_approval_is_for_the_arguments_that_were_shown() -> None:
    amounts = iter([1, 1000, 1])
    paid: list[int] = []

    async def say(messages: list[ModelMessage], info: AgentInfo) -> Any:
        if len(messages) == 1:
            yield {0: DeltaToolCall("pay", f'{{"amount": {next(amounts)}}}', tool_call_id="c1")}
        else:
            yield "done"

    agent = pydantic_library.Agent(FunctionModel(stream_function=say))

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    first = await bench(pydantic_ai.agent_class(agent, name="one", dependencies=())).run("one")
    assert asked(first).prompt == 'Allow pay with {"amount": 1}'
    second = await first.again(True)
    assert asked(second).prompt == 'Allow pay with {"amount": 1000}'
    assert asked(second).input_id != asked(first).input_id
    assert paid == []
    third = await first.again(True)
    assert (third.result, paid) == ({"answer": "done"}, [1])


async def test_an_approval_says_that_not_all_is_shown() -> None:
    class Asking(Agent):
        name = "asking"

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            return {"answer": (await _questions.approve(ctx, "pay", {"note": "x" * int(request.message)})).approved}

    short = await bench(Asking).run("asking", message="10")
    assert asked(short).prompt == 'Allow pay with {"note": "xxxxxxxxxx"}'
    for size in (5_000, 40_000):
        long = await bench(Asking).run("asking", message=str(size))
        assert f"its arguments have {size + 12} characters, and not all are shown" in asked(long).prompt


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ("Go on?", "Go on?"),
        ({"question": "Which?", "choices": ["a", "b"]}, "Which?"),
        ({"message": "Really?", "order": 7}, 'Really?\n{"order": 7}'),
        ({"order": 7}, '{"order": 7}'),
        ([1, 2], "[1, 2]"),
        ("  ", '"  "'),
        ({"bulk": "x" * 30_000}, None),
    ],
)
async def test_a_question_can_be_read(value: Any, prompt: str | None) -> None:
    class Asking(Agent):
        name = "asking"

        async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
            return {"answer": await _questions.ask(ctx, value)}

    first = await bench(Asking).run("asking")
    assert asked(first).prompt == prompt or (prompt is None and len(asked(first).prompt) <= 8192)
    assert (await first.again({"any": ["thing"]})).result == {"answer": {"any": ["thing"]}}
