"""What an adapter takes and what it refuses, and that nothing is imported before it is needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pydantic_ai as pydantic_library
import pytest
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel as FixedModel
from pydantic_ai.tools import DeferredToolRequests

from carrel import AgentContext, Request
from carrel.adapters import _declare, _pydantic_ai, langgraph, openai_agents, pydantic_ai
from carrel.agents import Message
from carrel.errors import InvalidConfigurationError
from examples.adapters.__main__ import main
from tests.adapters.patience import bench

plain = pydantic_library.Agent(FixedModel(custom_output_text="hello"))
number = 5


class Weather(BaseModel):
    """An output with a shape."""

    town: str
    degrees: int


def test_nothing_is_loaded_where_agents_are_named_only() -> None:
    libraries = {"pydantic_ai", "langgraph", "langchain_core", "agents", "openai"}
    program = "import sys, carrel, carrel.adapters, examples.adapters.agents; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "examples.adapters.agents" in done.stdout.split()
    assert not libraries & set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        (pydantic_ai, "pydantic_ai", "pydantic-ai"),
        (langgraph, "langgraph", "langgraph"),
        (openai_agents, "agents", "openai-agents"),
    ],
)
def test_a_missing_library_is_told_by_its_extra(
    module: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    # As where it is not installed: no finder knows it.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidConfigurationError, match=rf"{package} is not installed.*carrel\[{extra}\]"):
        module.agent_class("some_module:agent", name="one")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (5, "a int is none"),
        ("no_colon", "write 'module:attribute'"),
        (None, "needs an agent of pydantic-ai"),
    ],
)
def test_what_is_no_agent_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(InvalidConfigurationError, match=problem):
        pydantic_ai.agent_class(given, name="one")


def test_a_function_that_makes_no_agent_is_told() -> None:
    with pytest.raises(InvalidConfigurationError, match="the function gives a int"):
        _declare.Source(lambda: number, "pydantic-ai", lambda: pydantic_library.Agent).get()


@pytest.mark.parametrize("make", [pydantic_ai.agent_class, langgraph.agent_class, openai_agents.agent_class])
def test_what_cannot_be_declared_is_refused(make: Any) -> None:
    with pytest.raises(InvalidConfigurationError, match="cannot declare isolation"):
        make(lambda: None, name="one", isolation="task")
    with pytest.raises(InvalidConfigurationError, match="timeout_s must be a positive number"):
        make(lambda: None, name="one", timeout_s=-1)


def test_a_class_belongs_to_the_module_that_makes_it() -> None:
    made = pydantic_ai.agent_class(plain, name="one-two", description="Says hello.", timeout_s=5)
    assert (made.__module__, made.__name__, made.name) == (__name__, "OneTwo", "one-two")
    assert (made.dependencies, made.timeout_s, made.description) == (("llm",), 5, "Says hello.")


async def test_a_name_that_leads_nowhere_fails_the_stage() -> None:
    made = pydantic_ai.agent_class(f"{__name__}:number", name="one", dependencies=())
    stage = await bench(made).run("one")
    assert stage.error.code == "INVALID_CONFIGURATION"
    assert "gives a int" in stage.error.message


async def test_the_conversation_deps_and_the_answer_are_made_as_told() -> None:
    heard: list[ModelMessage] = []

    async def say(messages: list[ModelMessage], info: AgentInfo) -> Any:
        heard[:] = messages
        yield "done"

    agent = pydantic_library.Agent(FunctionModel(stream_function=say), deps_type=str)

    @agent.instructions
    def about(run: pydantic_library.RunContext[str]) -> str:
        return f"You work for {run.deps}."

    def deps(ctx: AgentContext, request: Request) -> str:
        return ctx.context.user_id

    made = pydantic_ai.agent_class(
        agent,
        name="one",
        dependencies=(),
        prompt=lambda request: f"<{request.message}>",
        deps=deps,
        answer=lambda output: {"said": output},
    )
    stage = await bench(made).run("one", message="hi")
    assert stage.result == {"said": "done"}
    assert "You work for alice." in str(heard)
    assert "<hi>" in str(heard)
    request = Request("new", history=(Message("user", "old"), Message("assistant", "answer")))
    assert [type(item).__name__ for item in _pydantic_ai.history(request)] == ["ModelRequest", "ModelResponse"]


async def test_an_output_with_a_shape_is_the_result() -> None:
    agent = pydantic_library.Agent(FixedModel(custom_output_args={"town": "Bern", "degrees": 3}), output_type=Weather)
    stage = await bench(pydantic_ai.agent_class(agent, name="one", dependencies=())).run("one")
    assert stage.result == {"town": "Bern", "degrees": 3}


async def test_thoughts_are_thoughts_and_a_deferred_call_is_a_question() -> None:
    async def say(messages: list[ModelMessage], info: AgentInfo) -> Any:
        if len(messages) == 1:
            yield {0: DeltaThinkingPart(content="Let me "), 1: DeltaThinkingPart(content="see.")}
            yield {2: DeltaToolCall("ask_them", '{"question": "Which town?"}', tool_call_id="c1")}
        else:
            yield f"So {messages[-1].parts[-1].content}."  # type: ignore[union-attr]  # a tool's result here

    agent = pydantic_library.Agent(FunctionModel(stream_function=say), output_type=[str, DeferredToolRequests])

    @agent.tool_plain
    def ask_them(question: str) -> str:
        """Ask the customer."""
        raise pydantic_library.CallDeferred

    first = await bench(pydantic_ai.agent_class(agent, name="one", dependencies=())).run("one")
    assert "".join(event.data["text"] for event in first.of("agent_thinking")) == "Let me see."
    assert first.outcome is not None
    assert first.outcome.question is not None
    assert first.outcome.question.prompt == "Which town?"
    second = await first.again("Bern")
    assert second.result == {"answer": "So Bern."}


def test_the_examples_say_how_to_start_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["another", "Where is order 7?"]) == 2
    assert "{pydantic,langgraph,openai} QUESTION" in capsys.readouterr().err
