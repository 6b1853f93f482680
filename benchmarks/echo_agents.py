"""The agent that benchmarks run: one thought, one tool call, done."""

from __future__ import annotations

from carrel import Agent, AgentContext, Request, tool


@tool(description="Gives back what it gets.")
async def echo(text: str) -> dict[str, str]:
    """Give the text back."""
    return {"text": text}


class EchoAgent(Agent):
    """Answers with the message."""

    name = "echo"
    tools = (echo,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """One thought, one tool call."""
        await ctx.thinking("Echoing")
        answer = await ctx.call_tool("echo", text=request.message)
        return {"answer": answer["text"]} if isinstance(answer, dict) else {}


agents = (EchoAgent,)
