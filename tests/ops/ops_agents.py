"""Agents for a stack whose metrics are read: one that does its work with a tool and a model, one that fails."""

from __future__ import annotations

from typing import Any

from carrel import Agent, AgentContext, Request, tool


@tool(description="Doubles a number.")
async def double(number: int) -> dict[str, Any]:
    """Give it twice."""
    return {"double": 2 * number}


class CountAgent(Agent):
    """Thinks three times, calls a tool twice and a model once."""

    name = "count"
    tools = (double,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One after another."""
        for number in range(3):
            await ctx.thinking(f"number {number}")
        for number in range(2):
            await ctx.call_tool("double", number=number)
        reply = await ctx.llm.chat([{"role": "user", "content": "how many?"}])
        return {"reply": reply.text}


class FailAgent(Agent):
    """Fails."""

    name = "fail"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Nothing works."""
        raise RuntimeError("nothing works today")


agents = (CountAgent, FailAgent)
