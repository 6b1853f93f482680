"""An agent whose work can be looked for afterwards: a file, a result, and steps for as long as a test needs it."""

from __future__ import annotations

import asyncio

from carrel import Agent, AgentContext, Request


class KeeperAgent(Agent):
    """Leaves a file with the message in it, and takes ``params.steps`` steps."""

    name = "keeper"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """The answer is the message, too."""
        await ctx.artifacts.put("kept.txt", request.message, "text/plain")
        for number in range(1, int(request.params.get("steps", 1)) + 1):
            await ctx.thinking(f"step {number}", number=number)
            await asyncio.sleep(0.02)
        return {"answer": request.message}
