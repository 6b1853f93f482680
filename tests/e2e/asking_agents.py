"""Agents that take their user's time: one asks, one needs an approval, one talks as long as told, one prints."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from carrel import Agent, AgentContext, Request, tool


@tool(description="Draws a lot.")
async def draw() -> dict[str, Any]:
    """Something that must not be done twice."""
    return {"lot": 7}


@tool(approval="user", description="Sends a mail.")
async def send_mail(to: str) -> dict[str, Any]:
    """Give back whom it went to."""
    return {"sent": to}


class AskAgent(Agent):
    """Draws, asks which colour, and answers with both."""

    name = "ask"
    idle_timeout_s = 120.0
    tools = (draw,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One tool call, one question."""
        lot = await ctx.call_tool("draw")
        colour = await ctx.ask("Which colour?", choices=["red", "green"])
        await asyncio.sleep(float(request.params.get("seconds", 0.0)))
        return {"lot": lot, "colour": colour}


class MailAgent(Agent):
    """Sends a mail, if it may."""

    name = "mail"
    tools = (send_mail,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """One call that its user has to approve."""
        return {"mail": await ctx.call_tool("send_mail", to="bob@example.com")}


class TalkAgent(Agent):
    """Answers with how many messages it was told before; after ``params.seconds``."""

    name = "talk"
    idle_timeout_s = 120.0

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Say that it is there, wait, answer."""
        await ctx.thinking("talking")
        await asyncio.sleep(float(request.params.get("seconds", 0.0)))
        return {"answer": f"to {request.message}", "history": [message.text for message in request.history]}


class LoudAgent(Agent):
    """Prints, and fails if ``params.fails``."""

    name = "loud"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """Print one line."""
        sys.stdout.write("something odd\n")
        sys.stdout.flush()
        if request.params.get("fails"):
            raise ValueError("loud")
        return {}


agents = (AskAgent, MailAgent, TalkAgent, LoudAgent)
