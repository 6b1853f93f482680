"""What idle connections cost one gateway: ten thousand users with one connection each, and nothing happening."""

from __future__ import annotations

import asyncio
import os
import re
import time
from pathlib import Path
from typing import Final

import psutil

from benchmarks.harness import bench_stack
from benchmarks.herd import HerdOrders, herd
from carrel.cli.stack import Stack

__all__ = ["ONE_ADDRESS", "connections", "cpu_percent", "orders_of", "own_kb"]

# BENCH_CONNECTIONS=1000 for a quick look.
_CONNECTIONS: Final = int(os.environ.get("BENCH_CONNECTIONS", "10000"))
_SETTLE_S: Final = 3.0
# A whole heartbeat, and its half.
_REST_S: Final = 45.0
# All of them come from this machine's address.
ONE_ADDRESS: Final = {
    "CARREL_GATEWAY_LIMITS__PER_ADDRESS": "20000",
    "CARREL_GATEWAY_LIMITS__CONNECTIONS": "25000",
}


async def connections() -> dict[str, float]:
    """``kb_per_idle_connection`` (the gateway's own memory, without the kernel's), ``idle_cpu_percent`` of a core, and
    how long it took until all were connected."""
    async with bench_stack(ONE_ADDRESS) as stack:
        gateway = psutil.Process(stack.pids()["gateway"])
        async with herd(orders_of(stack, 200, "warm")) as warm:
            await warm.until("connected", 200, 60)
        await asyncio.sleep(_SETTLE_S)
        before = own_kb(gateway.pid)
        async with herd(orders_of(stack, _CONNECTIONS, "idle")) as idle:
            took = await idle.until("connected", _CONNECTIONS, 180)
            await asyncio.sleep(_SETTLE_S)
            held = own_kb(gateway.pid) - before
            cpu = await cpu_percent(gateway, _REST_S)
            held_later = own_kb(gateway.pid) - before
            counts = await idle.counts()
        if counts["connected"] < _CONNECTIONS or counts["lost"]:
            raise RuntimeError(f"connections were lost: {counts}")
    return {
        "kb_per_idle_connection": max(held, held_later) / _CONNECTIONS,
        "idle_cpu_percent": cpu,
        "connections": _CONNECTIONS,
        "connected_s": took,
    }


def orders_of(stack: Stack, count: int, name: str, *, returns: bool = False, stalled: bool = False) -> HerdOrders:
    """Orders for ``count`` users called ``name0``, ``name1`` …"""
    host, _, port = stack.addresses["gateway"].rpartition(":")
    return HerdOrders(
        host, int(port), str(stack.state.login_secret), [f"{name}{n}" for n in range(count)], returns, {}, stalled
    )


def own_kb(pid: int) -> int:
    """The memory that is the process's own, in KiB; its share of libraries changes with other processes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def cpu_percent(process: psutil.Process, seconds: float) -> float:
    """CPU time that the process takes meanwhile, in percent of one core."""
    began, used = time.monotonic(), sum(process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    return 100 * (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began)
