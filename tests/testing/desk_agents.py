"""Agents for the tests of ``carrel.testing``: each does one thing that an author would test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from carrel import Agent, AgentContext, Plan, Request, tool

SECRET = "sk-proj-abcdefghijklmnopqrstuvwx0123456789"
drawn: list[str] = []


@tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(permission="vault:read", host=True)
async def open_vault() -> dict[str, Any]:
    """Read what few may read."""
    return {"gold": 7}


@tool
async def read_config() -> dict[str, Any]:
    """Answer with what no user may see."""
    return {"host": "db-1", "api_key": SECRET, "note": f"use {SECRET} for now"}


@tool(approval="user")
async def send_mail(to: str) -> dict[str, Any]:
    """Send a mail."""
    drawn.append(to)
    return {"sent": to}


@tool
async def draw() -> dict[str, Any]:
    """Draw a lot, which must not be done twice."""
    drawn.append("lot")
    return {"lot": len(drawn)}


class Adder(Agent):
    name = "adder"
    tools = (add,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.thinking("Adding")
        return {"sum": await ctx.call_tool("add", **request.params), "history": [m.text for m in request.history]}


class Vault(Agent):
    name = "vault"
    tools = (open_vault,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {"vault": await ctx.call_tool("open_vault")}


class Leaky(Agent):
    name = "leaky"
    tools = (read_config,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        config = await ctx.call_tool("read_config")
        await ctx.thinking(f"the key is {config['api_key']}")
        return {"host": config["host"]}


class Mailer(Agent):
    name = "mailer"
    tools = (draw, send_mail)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        lot = await ctx.call_tool("draw")
        colour = await ctx.ask("Which colour?", choices=["red", "green"])
        return {**lot, "colour": colour, **await ctx.call_tool("send_mail", to=request.message)}


class Slow(Agent):
    name = "slow"
    tools = (draw,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        await ctx.call_tool("draw")
        await ctx.thinking("waiting")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return {"attempt": ctx.attempt}


class Writer(Agent):
    name = "writer"
    requires = ("adder",)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        total = request.results["adder"]["sum"]
        await ctx.artifacts.put("report.txt", f"{total}\n".encode(), "text/plain")
        return {"report": f"the sum is {total}"}


class Planner(Agent):
    name = "supervisor"
    plans = True

    async def run(self, ctx: AgentContext, request: Request) -> Plan:
        return Plan(("adder", "writer"), params={"a": 20, "b": 22}, reason="add, then write")


class Lead(Agent):
    name = "lead"
    tools = (add,)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, Any]:
        return await ctx.run_agent("adder", params={"a": 1, "b": 2})


class Chat(Agent):
    name = "chat"
    tools = (add,)
    dependencies = ("llm",)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        talk = await ctx.llm.converse([{"role": "user", "content": request.message}], speak="message")
        return {"answer": talk.text}


class Broken(Agent):
    name = "broken"
    fallback = "adder"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        raise ValueError("no")


ALL = (Adder, Vault, Leaky, Mailer, Slow, Writer, Planner, Lead, Broken)
