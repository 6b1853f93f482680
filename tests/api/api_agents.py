"""The agents that the examples of examples/api ask, and whom generated requests start: none takes longer than told."""

from __future__ import annotations

import asyncio

from carrel import Agent, AgentContext, Request


class QuickAgent(Agent):
    """Says lines, three or ``params.lines``; at most 200."""

    name = "quick"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Line by line."""
        told = request.params.get("lines", 3)
        lines = min(told, 200) if isinstance(told, int) else 3
        for number in range(lines):
            await ctx.message(delta=f"line {number}\n", message_id="the-answer")
        return {"lines": lines}


class SlowAgent(Agent):
    """Thinks for ``params.seconds``, none without it, at most 30; unless it is cancelled."""

    name = "slow"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Second by second."""
        told = request.params.get("seconds", 0)
        seconds = min(told, 30) if isinstance(told, int) else 0
        for second in range(seconds):
            await ctx.thinking(f"second {second}")
            await asyncio.sleep(1)
        return {"seconds": seconds}


class AskingAgent(Agent):
    """Asks a question."""

    name = "asking"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Ask, and repeat the answer."""
        depth = await ctx.ask("How deep shall I look?", choices=["quick", "thorough"])
        return {"depth": str(depth)}


class WritingAgent(Agent):
    """Leaves an artifact."""

    name = "writing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Write a note."""
        reference = await ctx.artifacts.put("note.md", "# A note\n", "text/markdown")
        return {"note": reference.name}


agents = (QuickAgent, SlowAgent, AskingAgent, WritingAgent)
