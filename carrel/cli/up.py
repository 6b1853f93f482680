"""``carrel up``: the services until Ctrl-C, with their logs, on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from carrel.cli.invocation import own_command
from carrel.cli.output import EXIT_OK, JsonPrinter, Printer
from carrel.cli.reload import check_reload, reloading
from carrel.cli.signals import Stop, on_signals
from carrel.cli.stack import Stack, StackOptions, open_stack
from carrel.cli.tokens import development_token
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError

__all__ = ["command_line", "ended", "example_request", "stack_until_stopped", "up"]

# Of the packaged agents it is the one that is asked.
_PACKAGED: Final = "supervisor"
_ASK_S: Final = 5.0


async def up(options: StackOptions, *, reload: bool) -> int:
    """Run the stack until a signal; the exit code.

    Raises:
        StartupError: It can't start, or a process keeps dying.
    """
    if reload:
        check_reload(options)
    printer = JsonPrinter() if options.log_format == "json" else Printer()
    with on_signals() as stop:
        async with contextlib.AsyncExitStack() as opened:
            stack = await opened.enter_async_context(stack_until_stopped(options, printer, stop))
            if reload:
                await opened.enter_async_context(reloading(options, stack, printer))
            printer.line("carrel", await _greeting(stack, printer))
            await ended(stack, stop)
            printer.line("carrel", "stopping (Ctrl-C again to hasten)")
    printer.line("carrel", "stopped")
    return EXIT_OK


@asynccontextmanager
async def stack_until_stopped(options: StackOptions, printer: Printer, stop: Stop) -> AsyncIterator[Stack]:
    """The stack; a signal while it starts ends the start, a second one hastens the end.

    Raises:
        StartupError: It can't start.
        CancelledError: It was stopped before it had started.
    """
    task = asyncio.current_task()
    assert task is not None
    stop.on_request = task.cancel
    async with open_stack(options, printer.line, hasten=stop.hasten) as stack:
        stop.on_request = stop.requested.is_set
        yield stack


async def ended(stack: Stack, stop: Stop) -> None:
    """Wait for a signal.

    Raises:
        StartupError: A process dies again and again.
    """
    waiting = asyncio.create_task(stop.requested.wait(), name="wait for a signal")
    try:
        reasons: set[asyncio.Future[Any]] = {waiting, stack.supervisor.gave_up}
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if stack.supervisor.gave_up.done():
        raise stack.supervisor.gave_up.result()


def command_line(stack: Stack, arguments: str) -> str:
    """A command on this stack as it can be typed in another terminal."""
    state = stack.options.state_dir
    return f"{own_command()} {arguments}" + ("" if str(state) == ".carrel" else f" --state {shlex.quote(str(state))}")


async def _greeting(stack: Stack, printer: Printer) -> str:
    places = ", ".join(printer.paint(url, "1") for url in stack.urls)
    return (
        f"up at {places} after {stack.ready_s:.1f} s (state in {stack.state.root})\n"
        f"open it in a browser, or try in another terminal:  {command_line(stack, await _example(stack))}\n"
        "stop with Ctrl-C"
    )


async def _example(stack: Stack) -> str:
    """A request for an agent that is loaded, whatever the options and the environment have brought about."""
    try:
        token = development_token(stack.state.login_secret, "alice")
        async with GatewayHttp(stack.url, token, timeout_s=_ASK_S) as http:
            agents = (await http.get("/api/agents"))["agents"]
        return example_request(agents, os.environ.get("CARREL_EXECUTION_DEFAULT_AGENT", "").strip() or _PACKAGED)
    except (CarrelError, KeyError, TypeError):
        # In production nobody gets such a token, and the hint is not worth more than this.
        return 'run "MESSAGE" --agent NAME'


def example_request(agents: Sequence[Mapping[str, Any]], default: str) -> str:
    """The request to try, in the words of the command line, given the agents that there are and the default one."""
    names = [str(agent["name"]) for agent in agents]
    if default in names:
        return 'run "Write a report"' if default == _PACKAGED else 'run "Hello"'
    # One that needs no other's results can be asked alone.
    alone = [str(agent["name"]) for agent in agents if not agent.get("requires")]
    return f'run "Hello" --agent {(alone or names)[0]}' if names else 'run "MESSAGE" --agent NAME'
