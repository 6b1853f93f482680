"""The agent that `carrel doctor` runs: repeats a word, keeps it as an artifact, waits, or fails, as it is told.

It needs no model and no data, so that every deployment can have it. Whoever lacks the permission ``carrel:doctor`` gets
nothing from it: its first act is a tool call that the host refuses. What one run may take is bounded here.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from carrel.agent_context import AgentContext
from carrel.agents import Agent, Request
from carrel.doctor_names import DOCTOR_AGENT, DOCTOR_PERMISSION
from carrel.errors import InvalidRequestError
from carrel.tools import tool

__all__ = ["DoctorAgent"]

MAX_HOLD_S: Final = 20.0
MAX_EVENTS: Final = 20
MAX_WORDS: Final = 200
_BEAT_S: Final = 0.5


@tool(permission=DOCTOR_PERMISSION, description="Lets the deployment's own checks go on, and nobody else.")
async def doctor_permit(words: str) -> dict[str, Any]:
    """Give the words back."""
    return {"words": words}


class DoctorAgent(Agent):
    """Serves `carrel doctor`'s checks, for tokens with the permission carrel:doctor."""

    name = DOCTOR_AGENT
    tools = (doctor_permit,)
    # Short, so that a run that says nothing times out while a check waits for it.
    idle_timeout_s = 3.0
    timeout_s = 30.0

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        """``params``: ``events`` to send, an ``artifact`` to keep, seconds to ``hold``, ``silent`` or not, ``fail``."""
        words = request.message[:MAX_WORDS]
        _ = await ctx.call_tool("doctor_permit", words=words)
        for number in range(int(_bounded(request, "events", MAX_EVENTS))):
            await ctx.thinking(words, number=number)
        if request.params.get("artifact") is True:
            _ = await ctx.artifacts.put("doctor.txt", words, "text/plain")
        await self._hold(ctx, _bounded(request, "hold", MAX_HOLD_S), silent=request.params.get("silent") is True)
        if request.params.get("fail") is True:
            raise InvalidRequestError("the check asked for a failure", advice="nothing is to be done")
        return {"words": words}

    async def _hold(self, ctx: AgentContext, seconds: float, *, silent: bool) -> None:
        if silent:
            await asyncio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, _BEAT_S))
            await ctx.thinking("Still here")


def _bounded(request: Request, name: str, most: float) -> float:
    value = request.params.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return min(max(float(value), 0.0), most)


agents = (DoctorAgent,)
