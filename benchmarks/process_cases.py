"""How long a stack takes to be ready, and what its processes hold in memory."""

from __future__ import annotations

from typing import Final

import psutil
from aiohttp import ClientSession

from benchmarks.first_event_case import one_user
from benchmarks.harness import bench_stack
from benchmarks.report import percentile

__all__ = ["memory", "startup"]

_STARTS: Final = 5


async def startup() -> dict[str, float]:
    """``ready_s``: from nothing, keys included, to the gateway's readiness; the median of five starts."""
    seconds = []
    for _ in range(_STARTS):
        async with bench_stack() as stack, ClientSession() as session:
            async with session.get(f"{stack.url}/readyz") as answer:
                answer.raise_for_status()
            seconds.append(stack.ready_s)
    return {"ready_s": percentile(seconds, 0.5), "slowest_s": max(seconds)}


async def memory() -> dict[str, float]:
    """``<process>_rss_mb`` after a hundred runs of the echo agent."""
    async with bench_stack() as stack:
        await one_user(stack, "memory", times=100)
        return {f"{name}_rss_mb": psutil.Process(pid).memory_info().rss / 2**20 for name, pid in stack.pids().items()}
