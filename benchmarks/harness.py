"""What the cases share: a stack of real processes in a temporary folder, logins, run contexts."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from carrel.cli.stack import Stack, StackOptions, open_stack
from carrel.cli.tokens import development_token
from carrel.ids import new_id
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import load_signing_key
from servicekit.identity.tickets import TicketMinter

__all__ = ["ECHO_AGENTS", "PROFILED", "bench_stack", "login", "reached", "run_ticket_context"]

_T = TypeVar("_T")

ECHO_AGENTS: Final = Path(__file__).with_name("echo_agents.py")
# BENCH_PROFILE=execution make bench …: that service runs under cProfile, and says at its end where the figures are.
PROFILED: Final = "BENCH_PROFILE"


@asynccontextmanager
async def bench_stack(
    environment: Mapping[str, str] | None = None, *, replicas: Mapping[str, int] | None = None, redis: str = ""
) -> AsyncIterator[Stack]:
    """A stack with the echo agent on a free port; its last log lines are shown when a measurement fails."""
    tail: deque[str] = deque(maxlen=40)
    with tempfile.TemporaryDirectory(prefix="carrel-bench-") as folder:
        options = StackOptions(
            Path(folder),
            port=0,
            agents=[str(ECHO_AGENTS)],
            environment={"CARREL_LOG_LEVEL": "warning", **_profiling(), **(environment or {})},
            replicas=replicas or {},
            redis=redis,
        )
        try:
            async with open_stack(options, lambda name, line: tail.append(f"{name}: {line}")) as stack:
                yield stack
        except BaseException:
            print("\n".join(tail))
            raise


def _profiling() -> dict[str, str]:
    """What makes the services load ``profiling/sitecustomize.py``, when one of them is to be profiled."""
    if not os.environ.get(PROFILED):
        return {}
    paths = [str(Path(__file__).with_name("profiling")), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


async def reached(condition: Callable[[], _T], within_s: float, pause_s: float = 0.002) -> _T:
    """What the condition gives once that is true.

    Raises:
        RuntimeError: It was not in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise RuntimeError(f"not reached within {within_s:g} s")
        await asyncio.sleep(pause_s)


def login(stack: Stack, user: str) -> str:
    """A development login token."""
    return development_token(stack.state.login_secret, user, environ={})


def run_ticket_context(stack: Stack, user: str) -> UserExecutionContext:
    """The root context of a new run, under a ticket of execution's, which producers need."""
    minter = TicketMinter(load_signing_key(stack.state.execution_key), "execution")
    thread, run, request = new_id("thread"), new_id("run"), new_id("req")
    ticket = minter.mint_run(user, thread, run, request, ["trace:read", "trace:query", "optimize:run", "report:write"])
    context = UserExecutionContext(user_id=user, thread_id=thread, run_id=run, request_id=request, ticket=ticket)
    context.created_at.GetCurrentTime()
    return context
