"""The agents of the chaos suites. What they did is told by files that their host tools write, and by canaries.

A host tool's body runs in the service, so it can write where a worker may not.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from carrel import Agent, AgentContext, Request, tool
from carrel.errors import CarrelError

CALLS = 4


@tool(host=True, description="Counts that it ran.")
async def count(ctx: AgentContext, folder: str, stage: str, number: int) -> dict[str, int]:
    """One line for each execution: the stage, the number, the attempt, and the call's id."""
    _append(Path(folder) / "calls.txt", f"{stage} {number} {ctx.attempt} {ctx.tool_call_id}\n")
    return {"squared": number * number}


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class StageAgent(Agent):
    """Calls the counting tool a few times, and adds to what the stages before it found."""

    name = "stage_one"
    tools = (count,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
        """Call by call, with a moment between them."""
        pause, folder = float(request.params["pause_s"]), str(request.params["folder"])
        await ctx.thinking("beginning", pid=os.getpid())
        squares = []
        for number in range(1, CALLS + 1):
            answer = await ctx.call_tool("count", folder=folder, stage=self.name, number=number)
            squares.append(answer["squared"] if isinstance(answer, dict) else None)
            await ctx.thinking(f"call {number} is done", number=number, pid=os.getpid())
            await asyncio.sleep(pause)
        before = {name: result["squares"] for name, result in request.results.items()}
        return {"squares": squares, "before": before}


class StageTwoAgent(StageAgent):
    """The second."""

    name = "stage_two"
    requires = ("stage_one",)


class StageThreeAgent(StageAgent):
    """The third."""

    name = "stage_three"
    requires = ("stage_two",)


class PoisonAgent(Agent):
    """Kills its process, each time, as ``params.how`` says."""

    name = "poison"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, str]:
        """Say one thing, then die."""
        await ctx.thinking("dying", attempt=request.attempt, pid=os.getpid())
        if request.params.get("how") == "segfault":
            ctypes.string_at(0)
        os._exit(3)


class SlowAgent(Agent):
    """Says the next number every few milliseconds."""

    name = "slow"

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, int]:
        """Step by step."""
        steps = int(request.params.get("steps", 50))
        for number in range(1, steps + 1):
            await ctx.thinking(f"step {number}", number=number, attempt=request.attempt, pid=os.getpid())
            await asyncio.sleep(float(request.params.get("pause_s", 0.02)))
        return {"steps": steps, "attempt": request.attempt}


@tool(description="Gives the canary back.")
async def repeat(canary: str) -> dict[str, str]:
    """In the worker."""
    return {"canary": canary}


@tool(host=True, approval="user", description="Does what must be approved.")
async def approved(canary: str) -> dict[str, str]:
    """In the service, once its user has agreed."""
    return {"approved": canary}


class TalkAgent(Agent):
    """Puts its user's canary wherever an agent can put it: events, tools, artifacts, output, a file, the result."""

    name = "talk"
    tools = (repeat,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
        """In a few short steps."""
        canary = str(request.params["canary"])
        print("printed", canary, flush=True)
        _append(Path("kept.txt"), canary)
        seen = [message.text for message in request.history]
        for number in range(int(request.params.get("steps", 3))):
            await ctx.thinking(f"{canary} step {number}", canary=canary)
            await ctx.call_tool("repeat", canary=canary)
            await asyncio.sleep(float(request.params.get("pause_s", 0.02)))
        await ctx.message(f"I was given {canary}")
        if request.params.get("artifact"):
            await ctx.artifacts.put("canary.txt", canary * 50, "text/plain")
        return {"canary": canary, "history": seen[-3:]}


class TellAgent(TalkAgent):
    """The second of a pipeline."""

    name = "tell"
    requires = ("talk",)


class ParentAgent(Agent):
    """Has ``talk`` run for it, twice at once."""

    name = "parent"
    tools = (repeat,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
        """One of them may fail; the other still counts."""
        canary = str(request.params["canary"])
        found = await asyncio.gather(
            *(ctx.run_agent("talk", message=canary, params={"canary": canary, "steps": 1}) for _ in range(2)),
            return_exceptions=True,
        )
        if any(isinstance(one, asyncio.CancelledError) for one in found):
            raise asyncio.CancelledError
        return {"canary": canary, "failed": sum(isinstance(one, CarrelError) for one in found)}


class AskAgent(Agent):
    """Asks its user something, and does what needs approval when told so."""

    name = "ask"
    tools = (repeat, approved)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, object]:
        """Ask; the answer comes in a later attempt."""
        canary = str(request.params["canary"])
        await ctx.thinking(f"asking about {canary}", canary=canary)
        if request.params.get("approval"):
            try:
                return {"result": await ctx.call_tool("approved", canary=canary)}
            except CarrelError as error:
                return {"refused": error.code, "canary": canary}
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
        return {"answer": await ctx.ask(f"What about {canary}?", schema), "canary": canary}


agents = (
    StageAgent,
    StageTwoAgent,
    StageThreeAgent,
    PoisonAgent,
    SlowAgent,
    TalkAgent,
    TellAgent,
    ParentAgent,
    AskAgent,
)
