"""Carrel's tools in the hands of each library's agent: through the dispatcher in a run, directly outside one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import agents as openai_sdk
import pydantic_ai as pydantic_library
import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from carrel import Agent, AgentContext, tool
from carrel.adapters import langgraph, openai_agents, pydantic_ai
from carrel.errors import InvalidConfigurationError, InvalidContextError
from tests.adapters.patience import bench
from tests.support.model_server import CallTools, ModelServer, Say, Step

LIBRARIES = ("pydantic", "langgraph", "openai")
calls: list[int] = []


@tool(permission="numbers:double", name="numbers.double")
async def double(number: int) -> dict[str, int]:
    """Double a number."""
    calls.append(number)
    return {"double": 2 * number}


@tool(approval="user")
async def whose(ctx: AgentContext) -> str:
    """Say whose run it is."""
    return ctx.context.user_id


def pydantic_agent() -> pydantic_library.Agent[Any, str]:
    """It has the tools by itself."""
    return pydantic_library.Agent("openai-chat:any", toolsets=[pydantic_ai.toolset(double, whose)])


def graph() -> Any:
    """A model and its tools, the node that asks the model a blocking one."""
    mine = langgraph.tools(double, whose)
    model = ChatOpenAI().bind_tools(mine)

    def talk(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("talk", talk)
    builder.add_node("tools", ToolNode(mine))
    builder.add_edge(START, "talk")
    builder.add_conditional_edges("talk", tools_condition)
    builder.add_edge("tools", "talk")
    return builder.compile()


def sdk_agent() -> openai_sdk.Agent[Any]:
    """It names no model."""
    return openai_sdk.Agent(name="one", tools=openai_agents.function_tools(double, whose))


def made(library: str) -> type[Agent]:
    """The class."""
    options: Any = {"name": "one", "dependencies": (), "tools": (double, whose)}
    match library:
        case "pydantic":
            return pydantic_ai.agent_class(pydantic_agent, **options)
        case "langgraph":
            return langgraph.agent_class(graph, **options)
        case _:
            return openai_agents.agent_class(sdk_agent, **options)


async def alone(library: str, text: str) -> str:
    """The library's own answer, outside Carrel."""
    match library:
        case "pydantic":
            return (await pydantic_agent().run(text)).output
        case "langgraph":
            state = await graph().ainvoke({"messages": [("user", text)]})
            return str(state["messages"][-1].content)
        case _:
            result = await openai_sdk.Runner.run(
                sdk_agent(), text, run_config=openai_sdk.RunConfig(tracing_disabled=True)
            )
            return str(result.final_output)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_call_goes_through_the_dispatcher_and_is_not_made_again(library: str, model: ModelServer) -> None:
    script: list[Step] = [CallTools(("numbers_double", {"number": 4})), Say("eight")]
    model.script[:] = script
    calls.clear()
    first = await bench(made(library), permissions=frozenset({"numbers:*"})).run("one")
    assert first.result == {"answer": "eight"}
    (begun,), (done,) = first.of("tool_executing"), first.of("tool_completed")
    assert (begun.data["tool_name"], begun.data.get("reported")) == ("numbers.double", None)
    assert done.data["result"] == {"double": 8}
    assert [(record.action, record.target) for record in first.uplink.audited] == [("tool.call", "numbers.double")]
    model.script[:] = script
    second = await first.again()
    assert second.result == {"answer": "eight"}
    assert calls == [4], "the journal answered"


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_refusal_is_told_to_the_model(library: str, model: ModelServer) -> None:
    model.script[:] = [CallTools(("numbers_double", {"number": 4})), Say("I may not")]
    stage = await bench(made(library), permissions=frozenset()).run("one")
    assert stage.result == {"answer": "I may not"}
    assert stage.of("tool_completed")[0].data["denied"] is True
    assert "needs the permission numbers:double" in str(model.requests[-1].body)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_tool_that_asks_its_user_does(library: str, model: ModelServer) -> None:
    script: list[Step] = [CallTools(("whose", {})), Say("it is alice's")]
    model.script[:] = script
    first = await bench(made(library)).run("one")
    assert first.outcome is not None
    assert first.outcome.question is not None
    assert first.outcome.question.tool_name == "whose"
    model.script[:] = script
    second = await first.again(True)
    assert second.result == {"answer": "it is alice's"}
    assert second.of("tool_completed")[0].data["result"] == "alice"


@pytest.mark.parametrize("library", LIBRARIES)
async def test_outside_carrel_it_is_the_function(library: str, model: ModelServer) -> None:
    model.script[:] = [CallTools(("numbers_double", {"number": 5})), Say("ten")]
    calls.clear()
    assert await alone(library, "double five") == "ten"
    assert calls == [5]


async def test_outside_carrel_a_tool_that_needs_its_run_says_so(model: ModelServer) -> None:
    model.script[:] = [CallTools(("whose", {}))]
    with pytest.raises(InvalidContextError, match="works in a run of Carrel only"):
        await alone("pydantic", "whose?")


@pytest.mark.parametrize("make", [pydantic_ai.toolset, langgraph.tools, openai_agents.function_tools], ids=LIBRARIES)
def test_only_carrels_tools_are_taken(make: Callable[..., Any]) -> None:
    async def plain(number: int) -> int:
        return number

    with pytest.raises(InvalidConfigurationError, match=r"plain is no tool of Carrel's.*@carrel\.tool"):
        make(plain)


def test_tools_that_an_agent_has_are_declared_with_it() -> None:
    agent = pydantic_library.Agent(toolsets=[pydantic_ai.toolset(double)])
    assert pydantic_ai.agent_class(agent, name="one").tools == (double,)
