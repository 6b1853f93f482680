"""An agent in a worker process that calls the tools of an MCP server: for the tests of whole stacks."""

from __future__ import annotations

from collections.abc import Mapping

from carrel import Agent, AgentContext, Request
from carrel.errors import ToolError
from carrel.frozen import JSON


class Noter(Agent):
    """Keeps its user's message in the server's session, reads it back, and asks for what may be refused."""

    name = "noter"
    mcp = ("notes",)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        await ctx.call_tool("notes__remember", text=request.message)
        found = await ctx.call_tool("notes__recall")
        picture = await ctx.call_tool("notes__picture")
        try:
            refused = str(await ctx.call_tool("notes__secret"))
        except ToolError as error:
            refused = error.code
        return {"found": found, "picture": picture, "refused": refused}


agents = [Noter]
