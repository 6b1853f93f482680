"""Agents that do not want to end: one swallows its cancellation, one never yields, one has a tool that does either."""

from __future__ import annotations

import asyncio
import contextlib
import os

from carrel import Agent, AgentContext, Request, tool


@tool(description="Never ends.", timeout_s=60)
async def dawdle() -> dict[str, int]:
    """Swallow every cancellation."""
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


class Stubborn(Agent):
    """Tells its process id, then does as ``params.how`` says, and never ends by itself."""

    name = "stubborn"
    tools = (dawdle,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Be busy for ever."""
        await ctx.thinking("here", pid=os.getpid())
        how = request.params["how"]
        while how == "spin":
            pass
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                if how == "tool":
                    await ctx.call_tool("dawdle")
                await asyncio.sleep(60)


agents = (Stubborn,)
