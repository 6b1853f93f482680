"""Agents that do one of everything that a trace shows: a tool, a model, a sub-agent, a question to a person."""

from __future__ import annotations

from typing import Any

from carrel import Agent, AgentContext, Request, tool

SECRET = "the treasure is under the oak"


@tool(description="Looks something up.")
async def look_up(text: str) -> dict[str, Any]:
    """Give something back."""
    return {"found": text.upper()}


class GatherAgent(Agent):
    """The first stage: a thought, a tool, a model."""

    name = "gather"
    tools = (look_up,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One after another."""
        await ctx.thinking(SECRET)
        found = await ctx.call_tool("look_up", text=SECRET)
        reply = await ctx.llm.chat([{"role": "user", "content": SECRET}], speak="message")
        return {"found": found, "reply": reply.text}


class TellAgent(Agent):
    """The second stage: asks a person where ``params.ask`` says so."""

    name = "tell"
    requires = ("gather",)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Ask, or do not."""
        answer = await ctx.ask("Which colour?", choices=["red", "green"]) if request.params.get("ask") else "none"
        await ctx.thinking("telling")
        return {"told": answer}


agents = (GatherAgent, TellAgent)
