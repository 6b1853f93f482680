"""What telemetry costs: the same work on two stacks side by side, one with a tenth of the traces kept, one without.

Rounds alternate, so that what else the machine does falls on both. Beside throughput, which the loader shares a machine
with, the processor time of the five services for each event and each run: the sturdier figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import psutil

from benchmarks.asking import asker
from benchmarks.events_case import events_round
from benchmarks.harness import bench_stack, login, run_ticket_context
from benchmarks.injector import Lane
from benchmarks.runs_case import RUN_SETTINGS
from benchmarks.sockets import Sockets
from carrel.cli.stack import Stack

__all__ = ["telemetry_overhead"]

_USERS: Final = 50
_ROUNDS: Final = 8
_EVENTS_S: Final = 0.7
_RUNS_EACH: Final = 8
_AT_ONCE: Final = 12
_LONGEST_S: Final = 60.0
# In the service's loop, so that all of a run's time is the services' own.
_AGENT: Final = "echo_task"
_KEPT: Final = 10  # one in so many

# Takes whatever comes and looks at none of it: a collector is elsewhere as a rule.
_COLLECTOR: Final = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@dataclass
class _Side:
    """One of the two stacks, and what was measured on it."""

    stack: Stack
    sockets: Sockets
    lanes: Sequence[Lane]
    round: int = 0
    per_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, what: str, round_: Callable[[_Side], Awaitable[tuple[float, int]]]) -> None:
        """A round; it gives a rate, and how many there were."""
        before = _cpu_s(self.stack)
        rate, count = await round_(self)
        used = _cpu_s(self.stack) - before
        self.per_s.setdefault(what, []).append(rate)
        self.cpu_us.setdefault(what, []).append(used / max(1, count) * 1e6)


async def telemetry_overhead() -> dict[str, float]:
    """``<events | runs>_<off | on>_per_s`` and ``…_cpu_us``, best of the rounds; what ``on`` costs, in percent."""
    async with _collector() as url, contextlib.AsyncExitStack() as stack:
        on = {
            "CARREL_TELEMETRY__ENABLED": "true",
            "CARREL_TELEMETRY__TRACE_RATIO": str(1 / _KEPT),
            "CARREL_TELEMETRY__OTLP_ENDPOINT": url,
        }
        sides = {
            "off": await stack.enter_async_context(_side({})),
            "on": await stack.enter_async_context(_side(on)),
        }
        for number in range(-1, _ROUNDS):
            for name in sorted(sides, reverse=number % 2 == 0):
                await sides[name].measure("events", _events)
                await sides[name].measure("runs", _runs)
            if number < 0:  # the first is for warming up
                for side in sides.values():
                    side.per_s.clear()
                    side.cpu_us.clear()
    return _figures(sides)


def _figures(sides: dict[str, _Side]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for what in ("events", "runs"):
        for name, side in sides.items():
            # The best of the rounds: whatever else goes on makes them worse, and nothing makes one better than it is.
            figures[f"{what}_{name}_per_s"] = max(side.per_s[what])
            figures[f"{what}_{name}_cpu_us"] = min(side.cpu_us[what])
        off, on = figures[f"{what}_off_per_s"], figures[f"{what}_on_per_s"]
        figures[f"{what}_slower_percent"] = (1 - on / off) * 100
        off, on = figures[f"{what}_off_cpu_us"], figures[f"{what}_on_cpu_us"]
        figures[f"{what}_cpu_more_percent"] = (on / off - 1) * 100
    return figures


@asynccontextmanager
async def _side(environment: dict[str, str]) -> AsyncIterator[_Side]:
    async with bench_stack({**RUN_SETTINGS, **environment}) as stack:
        users = [f"bench{n}" for n in range(_USERS)]
        lanes = [_lane(stack, user, kept=n % _KEPT == 0) for n, user in enumerate(users)]
        async with Sockets(stack.url, {user: login(stack, user) for user in users}) as sockets:
            yield _Side(stack, sockets, lanes)


def _lane(stack: Stack, user: str, *, kept: bool) -> Lane:
    """A run's producer; what agent_instance puts into events of a kept trace, and of no other."""
    context = run_ticket_context(stack, user)
    trace, span = random.getrandbits(128) or 1, random.getrandbits(64) or 1
    return Lane(context, f"{context.run_id}:0:1", traceparent=f"00-{trace:032x}-{span:016x}-01" if kept else "")


async def _events(side: _Side) -> tuple[float, int]:
    # The round ends when the last event has come, which flat out is long after the last was sent.
    began = time.perf_counter()
    _, _, rate = await events_round(side.stack, side.sockets, side.lanes, 0.0, _EVENTS_S)
    return rate, round(rate * (time.perf_counter() - began))


async def _runs(side: _Side) -> tuple[float, int]:
    began = time.perf_counter()
    side.round += 1
    async with asyncio.timeout(_LONGEST_S), asyncio.TaskGroup() as group:
        for n in range(_AT_ONCE):
            group.create_task(_user(side.stack, f"runner{side.round}-{n}"))
    count = _AT_ONCE * _RUNS_EACH
    return count / (time.perf_counter() - began), count


async def _user(stack: Stack, user: str) -> None:
    """One run after the other."""
    async with asker(stack, user, batch=True) as one:
        for number in range(_RUNS_EACH):
            await one.execute(_AGENT, client_ref=f"r{number}")
            ended = False
            while not ended:
                for frame in await one.receive():
                    if frame.get("event_type") == "run_completed":
                        ended = True
                        if frame["data"].get("status") != "SUCCEEDED":
                            raise RuntimeError(f"a run ended so: {frame['data']}")


def _cpu_s(stack: Stack) -> float:
    """Processor time of the services so far, in user and system."""
    used = 0.0
    for pid in stack.pids().values():
        times = psutil.Process(pid).cpu_times()
        used += times.user + times.system
    return used


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _COLLECTOR, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.terminate()
        await process.wait()
