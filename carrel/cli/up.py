"""``carrel up``: the five processes until Ctrl-C, with their logs, on one machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.reload import check_reload, reloading
from carrel.cli.signals import Stop, on_signals
from carrel.cli.stack import Stack, StackOptions, open_stack

__all__ = ["stack_until_stopped", "up"]


async def up(options: StackOptions, *, reload: bool) -> int:
    """Run the stack until a signal; the exit code.

    Raises:
        StartupError: It can't start, or a process keeps dying.
    """
    if reload:
        check_reload(options)
    printer = Printer()
    with on_signals() as stop:
        async with contextlib.AsyncExitStack() as opened:
            stack = await opened.enter_async_context(stack_until_stopped(options, printer, stop))
            if reload:
                await opened.enter_async_context(reloading(options, stack, printer))
            _greet(printer, stack)
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


def _greet(printer: Printer, stack: Stack) -> None:
    state = "" if str(stack.options.state_dir) == ".carrel" else f" --state {stack.options.state_dir}"
    printer.line(
        "carrel",
        f"up at {printer.paint(stack.url, '1')} after {stack.ready_s:.1f} s (state in {stack.state.root})\n"
        f'try in another terminal:  carrel run "Write a report"{state}\n'
        "stop with Ctrl-C",
    )
