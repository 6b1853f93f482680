"""Carrel's tools in the hands of another library's agent: each call goes through the dispatcher of its run.

So it is checked, permitted, told to the user, approved where that is asked for, audited and journaled. Outside Carrel,
in a script or a test of the agent alone, the same tool is called directly, with its arguments checked and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from carrel.agent_context import AgentContext
from carrel.errors import InvalidConfigurationError, InvalidContextError
from carrel.frozen import JSON, thaw
from carrel.function_names import function_names
from carrel.tools import Tool

__all__ = ["at_work", "call", "call_from_thread", "named"]

_Loop = asyncio.AbstractEventLoop
_context: ContextVar[tuple[AgentContext, _Loop] | None] = ContextVar("carrel_adapters_context", default=None)


@contextmanager
def at_work(ctx: AgentContext) -> Iterator[None]:
    """Within the block, and in tasks begun there, tools are called in this context."""
    token = _context.set((ctx, asyncio.get_running_loop()))
    try:
        yield
    finally:
        _context.reset(token)


def named(tools: Sequence[Tool]) -> dict[str, Tool]:
    """The tools by the names that a model may call.

    Raises:
        InvalidConfigurationError: One is no tool of Carrel's.
    """
    for tool in tools:
        if not isinstance(tool, Tool):
            raise InvalidConfigurationError(
                f"{getattr(tool, '__name__', type(tool).__name__)} is no tool of Carrel's",
                advice="decorate the async function with @carrel.tool",
            )
    by_name = {tool.name: tool for tool in tools}
    return {function: by_name[name] for function, name in function_names(by_name).items()}


async def call(tool: Tool, arguments: Mapping[str, Any]) -> JSON:
    """Call it, and return its result as mutable JSON values.

    Raises:
        ToolError: Whatever went wrong.
        InvalidContextError: The tool needs its run, and there is none.
    """
    at = _context.get()
    if at is not None:
        ctx, _ = at
        result: JSON = thaw(await ctx.call_tool(tool.name, **arguments))
        return result
    checked = tool.check_arguments(arguments)
    if tool.wants_context:
        raise InvalidContextError(f"the tool {tool.name} needs an agent's context: it works in a run of Carrel only")
    return thaw(await tool.func(**checked))


def call_from_thread(tool: Tool, arguments: Mapping[str, Any]) -> JSON:
    """As ``call``, from a thread that has no loop: those that libraries run blocking code in."""
    at = _context.get()
    if at is None:
        return asyncio.run(call(tool, arguments))
    _, loop = at
    return asyncio.run_coroutine_threadsafe(call(tool, arguments), loop).result()
