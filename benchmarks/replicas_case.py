"""Events from Emit to 100 users' sockets over one and over two copies of emitter, bridge and gateway on one Redis.

The injector and the sockets share the machine with what they measure, so the case also says how many cores each kind
of process used while it went flat out: where their sum is the machine's, it is the machine that saturates.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import grpc
import psutil

from benchmarks.harness import bench_stack, login, reached, run_ticket_context
from benchmarks.injector import Injector, Lane
from benchmarks.redis_case import redis_server
from benchmarks.report import percentile
from benchmarks.sockets import Sockets
from carrel.cli.stack import Stack

__all__ = ["replicas"]

_USERS: Final = 100
_SECONDS: Final = 4.0
_ROUNDS: Final = 3
_SERVICES: Final = ("gateway", "emitter", "bridge")
_FULL: Final = 0.9


async def replicas() -> dict[str, float]:
    """``events_x1_per_s`` and ``events_x2_per_s``, the median of three rounds flat out each; cores used beside them."""
    figures: dict[str, float] = {}
    with redis_server() as url:
        for copies in (1, 2):
            rate, cores = await _measure(copies, url)
            figures[f"events_x{copies}_per_s"] = rate
            figures |= {f"x{copies}_cores_{name}": used for name, used in cores.items()}
            print(f"{copies} of each: {rate:,.0f} events/s; {_what_saturates(copies, cores)}", file=sys.stderr)
    return figures


async def _measure(copies: int, url: str) -> tuple[float, dict[str, float]]:
    async with bench_stack(replicas=dict.fromkeys(_SERVICES, copies), redis=url) as stack, AsyncExitStack() as opened:
        # Every process meets every other: who emits through the first emitter is connected to either gateway.
        users = [f"bench{copies}-{number}" for number in range(_USERS)]
        sockets = [
            await opened.enter_async_context(Sockets(at, {user: login(stack, user) for user in users[n::copies]}))
            for n, at in enumerate(stack.urls)
        ]
        half = _USERS // copies
        lanes = [[_lane(stack, user) for user in users[n * half : (n + 1) * half]] for n in range(copies)]
        await _round(stack, sockets, lanes, 1.0)
        rounds = [await _round(stack, sockets, lanes, _SECONDS) for _ in range(_ROUNDS)]
    names = rounds[0][1]
    return (
        percentile([rate for rate, _ in rounds], 0.5),
        {name: percentile([cores[name] for _, cores in rounds], 0.5) for name in names},
    )


def _lane(stack: Stack, user: str) -> Lane:
    context = run_ticket_context(stack, user)
    return Lane(context, f"{context.run_id}:0:1")


async def _round(
    stack: Stack, sockets: list[Sockets], lanes: list[list[Lane]], seconds: float
) -> tuple[float, dict[str, float]]:
    """(events/s, cores used by each kind of process) of one round."""
    latencies = [some.measure() for some in sockets]
    async with AsyncExitStack() as opened:
        channels = [
            await opened.enter_async_context(grpc.aio.insecure_channel(stack.addresses[name]))
            for name in stack.copies("emitter")
        ]
        before, began = _cpu(stack), time.perf_counter()
        injecting = [Injector(channel, some).run(0.0, seconds) for channel, some in zip(channels, lanes, strict=True)]
        sent = sum(await asyncio.gather(*injecting))
        await reached(lambda: sum(len(some) for some in latencies) >= sent, 30)
        took = time.perf_counter() - began
        after = _cpu(stack)
    return sent / took, {name: (after[name] - before[name]) / took for name in before}


def _cpu(stack: Stack) -> dict[str, float]:
    """Seconds of processor time that each kind of process has used."""
    pids = stack.pids()
    used = {service: sum(_used(pids[name]) for name in stack.copies(service)) for service in _SERVICES}
    used["load"] = _used(os.getpid())
    used["redis"] = sum(_used(child.pid) for child in psutil.Process().children() if child.name() == "redis-server")
    everybody = psutil.cpu_times()
    used["others"] = everybody.user + everybody.nice + everybody.system - sum(used.values())
    return used


def _used(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _what_saturates(copies: int, cores: Mapping[str, float]) -> str:
    machine, total = psutil.cpu_count() or 1, sum(cores.values())
    full = [name for name in _SERVICES if cores[name] / copies > _FULL]
    shares = ", ".join(f"{name} {used:.2f}" for name, used in cores.items())
    if cores["others"] > (1 - _FULL) * machine:
        return f"measured beside other work, which took {cores['others']:.2f} of {machine} cores: no figure ({shares})"
    if total > _FULL * machine:
        return f"the machine's {machine} cores are used up ({shares})"
    if full:
        return f"each process of {', '.join(full)} has a core full ({shares})"
    return f"{total:.2f} of {machine} cores are used, by these processes ({shares})"
