"""An agent that makes as many small events as it is asked for, at once: what the conformance suite fills logs with."""

from __future__ import annotations

from carrel import Agent, AgentContext, Request


class QuickAgent(Agent):
    """Says ``params.lines`` lines."""

    name = "quick"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Line by line."""
        lines = int(request.params.get("lines", 40))
        for number in range(lines):
            await ctx.message(f"line {number}: the quick brown fox jumps over the lazy dog\n")
        return {"lines": lines}


agents = (QuickAgent,)
