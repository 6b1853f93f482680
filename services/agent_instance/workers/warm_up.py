"""A few attempts of an agent that does next to nothing, inside the zygote, before it forks anything.

What the interpreter does at the first calls of a function (lazy imports, caches, bytecode made quick) happens here once
instead of in each worker, where it would cost the first event milliseconds and a private copy of every page it touches.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final

import orjson

from carrel import agent_codec
from carrel.agent_context import AgentContext
from carrel.agent_messages import (
    CallTool,
    EmitEvent,
    EventAccepted,
    Result,
    RunToolBody,
    Start,
    ToolBodyResult,
    ToolReply,
)
from carrel.agent_runtime import WorkerSession
from carrel.agents import Agent, Request
from carrel.context import UserContextFactory
from carrel.frozen import JSON
from carrel.tools import tool
from services.agent_instance.workers.framing import HEADER
from services.agent_instance.workers.port import Port

__all__ = ["warm_up"]

# The interpreter makes a function's bytecode quick at its eighth call.
_ATTEMPTS: Final = 12


@tool
async def nothing(text: str = "") -> dict[str, Any]:
    """Do nothing."""
    return {}


class _Idle(Agent):
    name = "warm-up"
    tools = (nothing,)

    async def run(self, ctx: AgentContext, request: Request) -> Mapping[str, JSON]:
        await ctx.thinking("…")
        return {"answer": await ctx.call_tool("nothing", text=request.message)}


def warm_up() -> None:
    """Run the attempts; nothing of them is left but what the interpreter has learned."""
    for _ in range(_ATTEMPTS):
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_attempt())


async def _attempt() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        host, port = Port(ours), Port(theirs)
        serving = asyncio.create_task(WorkerSession(port, lambda _: _Idle).serve())
        context = UserContextFactory.from_request("nobody")
        await _send(ours, Start(context.to_dict(), _Idle.name, Request("…").to_dict(), (nothing.name,)))
        while (frame := await host.frame()) is not None:
            match agent_codec.decode(frame):
                case EmitEvent(call_id):
                    await _send(ours, EventAccepted(call_id))
                case CallTool(call_id, handle, name, arguments):
                    await _send(ours, RunToolBody(f"call-{call_id}", name, arguments, handle, context.to_dict()))
                case ToolBodyResult(tool_call_id, result):
                    await _send(ours, ToolReply(int(tool_call_id.removeprefix("call-")), result))
                case Result():
                    break
                case other:
                    raise AssertionError(other)
        await serving


async def _send(sock: socket.socket, message: Any) -> None:
    data = orjson.dumps(agent_codec.to_dict(message))
    await asyncio.get_running_loop().sock_sendall(sock, HEADER.pack(len(data)) + data)
