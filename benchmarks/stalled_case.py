"""A thousand readers that take nothing, and what they change for others: latencies beside those without them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

import grpc
import psutil

from benchmarks.connections_case import ONE_ADDRESS, orders_of, own_kb
from benchmarks.events_case import events_round
from benchmarks.harness import bench_stack, login, run_ticket_context
from benchmarks.herd import herd
from benchmarks.injector import Injector, Lane
from benchmarks.sockets import Sockets
from carrel.cli.stack import Stack

__all__ = ["stalled_readers"]

_STALLED: Final = int(os.environ.get("BENCH_STALLED", "1000"))
_HEALTHY: Final = 50
_RATE: Final = 500.0
_SECONDS: Final = 4.0
# More than a receiver's buffers and the gateway's take together.
_EACH: Final = 60
_EVENT_BYTES: Final = 8_000
# They are to be there for as long as is measured.
_SETTINGS: Final = {**ONE_ADDRESS, "WEBSOCKET_DELIVERY_TIMEOUT": "120"}


async def stalled_readers() -> dict[str, float]:
    """``p50_ms`` and ``p99_ms`` of 50 users' 500 events/s while 1,000 others' readers are stalled, their ratios to the
    same without those, and the gateway's memory for each stalled one with its user's ring."""
    async with bench_stack(_SETTINGS) as stack:
        users = [f"healthy{number}" for number in range(_HEALTHY)]
        lanes = [_lane(stack, user) for user in users]
        async with Sockets(stack.url, {user: login(stack, user) for user in users}) as sockets:
            await events_round(stack, sockets, lanes, _RATE, 1.0)
            alone = await events_round(stack, sockets, lanes, _RATE, _SECONDS)
            before = own_kb(stack.pids()["gateway"])
            async with herd(orders_of(stack, _STALLED, "stalled", stalled=True)) as stalled:
                await stalled.until("connected", _STALLED, 120)
                await _flood(stack, [_lane(stack, f"stalled{number}") for number in range(_STALLED)])
                beside = await events_round(stack, sockets, lanes, _RATE, _SECONDS)
                held = own_kb(stack.pids()["gateway"]) - before
                left = psutil.Process(stack.pids()["gateway"]).num_fds()
    if left < _STALLED:
        raise RuntimeError(f"the stalled readers were gone before the end: {left} files are open")
    return {
        "p50_ms": beside[0],
        "p99_ms": beside[1],
        "p50_ratio": beside[0] / alone[0],
        "p99_ratio": beside[1] / alone[1],
        "kb_per_stalled_reader": held / _STALLED,
    }


def _lane(stack: Stack, user: str) -> Lane:
    context = run_ticket_context(stack, user)
    return Lane(context, f"{context.run_id}:0:1")


async def _flood(stack: Stack, lanes: Sequence[Lane]) -> None:
    """Sixty large events for each, fifty users at a time."""
    data = b'{"text":"%b"}' % (b"x" * _EVENT_BYTES)
    for begin in range(0, len(lanes), 50):
        some = lanes[begin : begin + 50]
        for lane in some:
            for _ in range(_EACH):
                lane.make(data)
        async with grpc.aio.insecure_channel(stack.addresses["emitter"]) as channel:
            await Injector(channel, some).acknowledged()
        await asyncio.sleep(0)
