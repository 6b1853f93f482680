"""An agent whose work can be looked for afterwards: a file, a result, and steps for as long as a test needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from carrel import Agent, AgentContext, Request


class KeeperAgent(Agent):
    """Leaves a file with the message in it, and takes ``params.steps`` steps.

    After the tenth it waits until there is a file ``params.until``.
    """

    name = "keeper"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """The answer is the message, too."""
        await ctx.artifacts.put("kept.txt", request.message, "text/plain")
        for number in range(1, int(request.params.get("steps", 1)) + 1):
            await ctx.thinking(f"step {number}", number=number)
            await asyncio.sleep(0.02)
            until = request.params.get("until", "") if number == 10 else ""
            while until and not Path(until).exists():  # noqa: ASYNC110 -- another process makes it
                await asyncio.sleep(0.02)
        return {"answer": request.message}
