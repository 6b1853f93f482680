"""The examples' agents, a stage before them, and agents that hang, with little patience for them."""

from __future__ import annotations

from typing import Any

from carrel import Agent, AgentContext, Request, tool
from carrel.adapters import langgraph, openai_agents, pydantic_ai
from examples.adapters.agents import agents as desks


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
    pydantic_ai.agent_class("slow_parts:agent", name="pydantic-slow", idle_timeout_s=8),
    langgraph.agent_class("slow_parts:graph", name="langgraph-slow", idle_timeout_s=8),
    openai_agents.agent_class("slow_parts:desk", name="openai-slow", idle_timeout_s=8),
)
