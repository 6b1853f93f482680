"""Events from Emit to 100 users' sockets, every one durable in the SQLite log first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import grpc

from benchmarks.harness import bench_stack, login, run_ticket_context
from benchmarks.injector import Injector, Lane
from benchmarks.report import percentile
from benchmarks.sockets import Sockets
from carrel.cli.stack import Stack

__all__ = ["events", "events_under"]

_USERS: Final = 100
_RATE: Final = 2000.0
_SECONDS: Final = 5.0
_ROUNDS: Final = 3


async def events() -> dict[str, float]:
    """``p50_ms`` and ``p99_ms`` at 2,000 events/s, ``max_per_s`` flat out; the median of three rounds each.

    The hundred runs have begun before the first round that counts: their tickets are known to every service by then.
    """
    return await events_under({})


async def events_under(environment: Mapping[str, str]) -> dict[str, float]:
    """The figures of a stack with these settings."""
    async with bench_stack(environment) as stack:
        users = [f"bench{n}" for n in range(_USERS)]
        lanes = [_lane(stack, user) for user in users]
        async with Sockets(stack.url, {user: login(stack, user) for user in users}) as sockets:
            await events_round(stack, sockets, lanes, _RATE, 1.0)
            paced = [await events_round(stack, sockets, lanes, _RATE, _SECONDS) for _ in range(_ROUNDS)]
            flat = [await events_round(stack, sockets, lanes, 0.0, _SECONDS) for _ in range(_ROUNDS)]
    return {
        "p50_ms": percentile([p50 for p50, _, _ in paced], 0.5),
        "p99_ms": percentile([p99 for _, p99, _ in paced], 0.5),
        "max_per_s": percentile([rate for _, _, rate in flat], 0.5),
        "flat_p50_ms": percentile([p50 for p50, _, _ in flat], 0.5),
    }


def _lane(stack: Stack, user: str) -> Lane:
    context = run_ticket_context(stack, user)
    return Lane(context, f"{context.run_id}:0:1")


async def events_round(
    stack: Stack, sockets: Sockets, lanes: Sequence[Lane], rate: float, seconds: float
) -> tuple[float, float, float]:
    """(p50 ms, p99 ms, events/s) of one round, from the event's making to its decoding in the client."""
    latencies = sockets.measure()
    async with grpc.aio.insecure_channel(stack.addresses["emitter"]) as channel:
        began = time.perf_counter()
        sent = await Injector(channel, lanes).run(rate, seconds)
        async with asyncio.timeout(30):
            await sockets.received(sent)
        took = time.perf_counter() - began
    return percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.99) * 1e3, sent / took
