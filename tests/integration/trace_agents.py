"""An agent with a tool, for traces."""

from __future__ import annotations

from carrel import Agent, AgentContext, Request, tool


@tool(description="Counts one step.")
async def step(number: int) -> dict[str, int]:
    """Give the number back."""
    return {"number": number}


class CountAgent(Agent):
    """Thinks and counts, in the service's own loop."""

    name = "count"
    isolation = "task"
    tools = (step,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """One thought, one step."""
        await ctx.thinking("counting")
        return {"counted": (await ctx.call_tool("step", number=1))["number"]}


agents = (CountAgent,)
