"""The agents that benchmarks run. ``echo`` and ``echo_task`` do the same: one thought, one tool call, done.

The others are for one case each; what they measure is said at the case.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

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


class EchoTaskAgent(EchoAgent):
    """The same in the service's loop."""

    name = "echo_task"
    isolation = "task"


class StampAgent(Agent):
    """Says when its first line ran, on the machine's monotonic clock."""

    name = "stamp"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, float]:
        """The first line takes the time."""
        at = time.monotonic()
        await ctx.thinking("Here", at=at)
        return {"at": at}


class PacedAgent(Agent):
    """Says the time ``params.events`` times, ``params.pause_s`` apart."""

    name = "paced"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Event by event."""
        pause, events = float(request.params["pause_s"]), int(request.params["events"])
        for number in range(events):
            await ctx.thinking("Going on", number=number, at=time.time(), pid=os.getpid())
            await asyncio.sleep(pause)
        return {"events": events}


class PacedTaskAgent(PacedAgent):
    """The same in the service's loop."""

    name = "paced_task"
    isolation = "task"


def _note(at: float) -> None:
    """Whoever reads it finds all of it or nothing."""
    Path("unfinished").write_text(repr(at), encoding="ascii")
    Path("unfinished").rename("cancelled")


class PoliteAgent(Agent):
    """Waits to be cancelled, and leaves a note of the moment in its own folder for whoever looks there."""

    name = "polite"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Wait."""
        try:
            await ctx.thinking("Waiting", pid=os.getpid(), folder=str(Path.cwd()))
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            at = time.monotonic()
            _note(at)
            # Long enough that the note is found, shorter than any grace.
            await asyncio.sleep(0.1)
            raise
        return {}


class StubbornAgent(Agent):
    """Goes on whatever it is told: waiting, or (``params.busy``) without ever giving its loop a turn."""

    name = "stubborn"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Never end."""
        await ctx.thinking("Staying", pid=os.getpid())
        while True:
            try:
                await asyncio.sleep(0.0 if request.params.get("busy") else 300)
                while request.params.get("busy"):
                    pass
            except asyncio.CancelledError:
                continue


class HogAgent(Agent):
    """Misbehaves as ``params.how`` says: spins, allocates, prints, floods with events, or dies."""

    name = "hog"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """For as long as it is let."""
        how = request.params["how"]
        if how == "dies":
            os._exit(1)
        kept, number = [], 0
        while True:
            number += 1
            if how == "allocates":
                kept.append(bytearray(16 * 1024 * 1024))
                kept[-1][::4096] = b"x" * len(kept[-1][::4096])
                await asyncio.sleep(0)
            elif how == "prints":
                print("x" * 65_536)
            elif how == "floods":
                await ctx.message("x" * 500)


agents = (EchoAgent, EchoTaskAgent, StampAgent, PacedAgent, PacedTaskAgent, PoliteAgent, StubbornAgent, HogAgent)
