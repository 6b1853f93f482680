"""A gateway dies with two thousand clients on it: how long until all are back, and have what happened meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Final

import grpc

from benchmarks.connections_case import ONE_ADDRESS, orders_of
from benchmarks.harness import bench_stack, reached, run_ticket_context
from benchmarks.herd import herd
from benchmarks.injector import Injector, Lane
from carrel.cli.stack import Stack

__all__ = ["reconnect_storm"]

_CLIENTS: Final = int(os.environ.get("BENCH_STORM", "2000"))
_LONGEST_S: Final = 120.0


async def reconnect_storm() -> dict[str, float]:
    """``caught_up_s``: from ``kill -9`` of the gateway until each of 2,000 users is back with a position and has got
    the event that was made while it was away; ``gateway_back_s``: of that, until the gateway was ready again."""
    async with bench_stack(ONE_ADDRESS) as stack, herd(orders_of(stack, _CLIENTS, "storm", returns=True)) as clients:
        lanes = [_lane(stack, f"storm{number}") for number in range(_CLIENTS)]
        await clients.until("connected", _CLIENTS, _LONGEST_S)
        async with grpc.aio.insecure_channel(stack.addresses["emitter"]) as channel:
            await _one_each(channel, lanes)
            await clients.until("least_offset", 1, _LONGEST_S)
            old = stack.pids()["gateway"]
            os.kill(old, signal.SIGKILL)
            began = time.monotonic()
            await asyncio.gather(_one_each(channel, lanes), _back(stack, old))
            back = time.monotonic() - began
            await clients.until("least_offset", 2, _LONGEST_S)
            caught_up = time.monotonic() - began
        counts = await clients.counts()
    if counts["repeated"]:
        raise RuntimeError(f"events came twice, or not in order: {counts}")
    return {"caught_up_s": caught_up, "gateway_back_s": back, "clients": _CLIENTS, "refused": counts["refused"]}


def _lane(stack: Stack, user: str) -> Lane:
    context = run_ticket_context(stack, user)
    return Lane(context, f"{context.run_id}:0:1")


async def _one_each(channel: grpc.aio.Channel, lanes: list[Lane]) -> None:
    """One event more for each user, in the log."""
    for lane in lanes:
        lane.make(b'{"text":"meanwhile"}')
    await Injector(channel, lanes).acknowledged()


async def _back(stack: Stack, old: int) -> None:
    def ready() -> bool:
        child = stack.facts()["processes"]["gateway"]
        return bool(child["ready"]) and child["pid"] not in {None, old}

    await reached(ready, _LONGEST_S)
