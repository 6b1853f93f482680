"""Agents of each library that never come to an end: a tool that blocks its thread, and little patience with it."""

from __future__ import annotations

import time
from typing import Any

import agents as openai_sdk
import pydantic_ai as pydantic_library
from langchain_core.tools import tool as langchain_tool

from carrel import Agent, AgentContext, Request, tool
from carrel.adapters import langgraph, openai_agents, pydantic_ai
from examples.adapters.agents import agents as desks


def find_order(number: int) -> str:
    """Look an order up, for ever."""
    time.sleep(600)
    return ""


def _graph() -> langgraph.Graph:
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    mine = [langchain_tool(find_order)]
    model = ChatOpenAI().bind_tools(mine)

    async def talk(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("talk", talk)
    builder.add_node("tools", ToolNode(mine))
    builder.add_edge(START, "talk")
    builder.add_conditional_edges("talk", tools_condition)
    return builder.compile()


@tool
async def stamp() -> dict[str, bool]:
    """Something that is done once."""
    return {"done": True}


class First(Agent):
    """The stage before."""

    name = "first"
    tools = (stamp,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Calls its tool."""
        return {"stamp": await ctx.call_tool("stamp")}


agents = (
    *desks,
    First,
    pydantic_ai.agent_class(
        pydantic_library.Agent("openai-chat:any", tools=[find_order], defer_model_check=True),
        name="pydantic-slow",
        idle_timeout_s=1,
    ),
    langgraph.agent_class(_graph, name="langgraph-slow", idle_timeout_s=1),
    openai_agents.agent_class(
        openai_sdk.Agent(name="slow", tools=[openai_sdk.function_tool(find_order)]),
        name="openai-slow",
        idle_timeout_s=1,
    ),
)
