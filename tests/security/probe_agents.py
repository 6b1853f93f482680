"""Agents that the tests here and in ``tests/e2e`` run: one for each thing that can be asked for too much or wrongly.

Loaded by agent_instance with ``--agents``; nothing imports them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from carrel import Agent, AgentContext, Request, tool


@tool(description="Gives back what it gets.")
async def echo(text: str, times: int = 1) -> dict[str, Any]:
    """Give the text back."""
    return {"text": text * times}


@tool(permission="probe:locked", description="Needs a permission that nobody has by default.")
async def locked() -> dict[str, Any]:
    """Open the door."""
    return {"secret": "inside"}


@tool
async def broken() -> dict[str, Any]:
    """Fail with a text that is nobody's business."""
    raise ValueError("cannot log in with password hunter2")


@tool
async def tell(data: dict[str, Any]) -> dict[str, Any]:
    """Give the data back."""
    return data


class EchoAgent(Agent):
    """Answers with the message."""

    name = "echo"
    tools = (echo,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One thought, one tool call."""
        await ctx.thinking(f"Echoing {request.message}")
        answer = await ctx.call_tool("echo", text=request.message)
        return {"answer": answer["text"] if isinstance(answer, dict) else None}


class HoldAgent(Agent):
    """Says that it is there, and stays until it is cancelled."""

    name = "hold"
    idle_timeout_s = 120.0

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Wait for ever."""
        await ctx.thinking("Holding")
        await asyncio.Event().wait()
        return {}


class WaiterAgent(Agent):
    """Waits for its user's word."""

    name = "waiter"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Ask, and give the answer back."""
        return {"answer": await ctx.ask("What is the word?")}


class KeeperAgent(Agent):
    """Stores the message as an artifact that has the same name in every run."""

    name = "keeper"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Store, tell, answer; a child in between."""
        await ctx.thinking(f"Keeping {request.message}")
        async with ctx.child("filing") as child:
            await child.thinking(f"Filing {request.message}")
        note = await ctx.artifacts.put("note.txt", request.message, "text/plain")
        history = [message.text for message in request.history]
        return {"kept": request.message, "note": note.to_dict(), "history": history}


class BulkyAgent(Agent):
    """Has more to say than an event or a result may hold."""

    name = "bulky"
    tools = (echo,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Say ``thinking`` characters, call a tool that gives ``tool`` of them, answer with ``result`` of them."""
        sizes = {name: value for name, value in request.params.items() if isinstance(value, int)}
        await ctx.thinking("t" * sizes.get("thinking", 1))
        if "tool" in sizes:
            await ctx.call_tool("echo", text="o", times=sizes["tool"])
        return {"big": "r" * sizes.get("result", 1)}


class CallerAgent(Agent):
    """Calls the tool that ``params`` name with the arguments that they name."""

    name = "caller"
    tools = (echo, locked, broken)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One call; its error is the agent's."""
        arguments: Any = request.params.get("arguments", {})
        value = await ctx.call_tool(str(request.params["tool"]), **dict(arguments))
        return {"value": value}


class TellerAgent(Agent):
    """Tells all that it is told: in thoughts, in the answer, in arguments and results of a tool, in its own result."""

    name = "teller"
    tools = (tell,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Tell it item by item."""
        for item in request.params["items"]:
            if "text" in item:
                await ctx.thinking(str(item["text"]))
                await ctx.message(str(item["text"]))
            await ctx.call_tool("tell", data=dict(item))
        return {"told": request.params["items"]}


class NeedyAgent(Agent):
    """Needs another agent's result."""

    name = "needy"
    requires = ("echo",)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Repeat it."""
        return {"heard": request.results["echo"]["answer"]}


agents = (EchoAgent, WaiterAgent, HoldAgent, KeeperAgent, BulkyAgent, CallerAgent, TellerAgent, NeedyAgent)
