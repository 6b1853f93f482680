"""The agents that the snippets of docs/javascript.md and docs/howto/chat-page.md ask."""

from __future__ import annotations

from carrel import Agent, AgentContext, Request, tool


class QuickAgent(Agent):
    """Says lines, three or ``params.lines``."""

    name = "quick"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Line by line."""
        lines = int(request.params.get("lines", 3))
        for number in range(lines):
            await ctx.message(delta=f"line {number}\n", message_id="the-answer")
        return {"lines": lines}


@tool(approval="user")
async def send_mail(to: str) -> dict[str, str]:
    """Send a mail."""
    return {"sent": to}


class AskingAgent(Agent):
    """Asks a question, and for an approval."""

    name = "asking"
    tools = (send_mail,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
        """Ask, then send."""
        depth = await ctx.ask("How deep shall I look?", choices=["quick", "thorough"])
        return {"depth": depth, "mail": await ctx.call_tool("send_mail", to="bob@example.com")}


class WritingAgent(Agent):
    """Leaves an artifact."""

    name = "writing"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Write a note."""
        reference = await ctx.artifacts.put("note.md", "# A note\n", "text/markdown")
        return {"note": reference.name}


class PlainAgent(Agent):
    """Answers by its result, and writes nothing on its way; fails when told to."""

    name = "plain"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Say what was heard."""
        if request.message == "fail":
            raise ValueError("told to")
        return {"answer": f"heard {request.message}"}


agents = (QuickAgent, AskingAgent, WritingAgent, PlainAgent)
