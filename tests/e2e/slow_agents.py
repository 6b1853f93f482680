"""An agent that is busy for as long as a test needs it: many small events, tool calls, a child."""

from __future__ import annotations

import asyncio

from carrel import Agent, AgentContext, Request, tool


@tool(description="Counts one step.")
async def step(number: int) -> dict[str, int]:
    """Give the number back."""
    return {"number": number}


class SlowAgent(Agent):
    """Takes ``params.steps`` steps with a short pause between them."""

    name = "slow"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Step by step; every tenth is a tool call, one in the middle a child's."""
        steps = int(request.params.get("steps", 60))
        for number in range(1, steps + 1):
            await ctx.thinking(f"step {number}", number=number)
            if number % 10 == 0:
                await ctx.call_tool("step", number=number)
            if number == steps // 2:
                async with ctx.child("middle") as child:
                    await child.thinking("in the middle", number=number)
            await asyncio.sleep(0.015)
        return {"steps": steps}


class LastAgent(Agent):
    """Ends right after several tool calls at once, while execution still keeps the journal of them."""

    name = "last"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """All calls, then the end."""
        calls = int(request.params.get("calls", 8))
        await asyncio.gather(*(ctx.call_tool("step", number=number) for number in range(calls)))
        return {"calls": calls}


agents = (SlowAgent, LastAgent)
