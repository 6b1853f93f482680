"""A quiet user's events while another user floods the system with bad agents and with runs."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.asking import Asker, RefusedError, asker
from benchmarks.harness import bench_stack
from benchmarks.report import percentile
from carrel.cli.stack import Stack

__all__ = ["fairness"]

_EVENTS: Final = 800
_PAUSE_S: Final = 0.01
_BAD: Final = ("spins", "allocates", "prints", "floods", "dies")
_RUNS_AT_ONCE: Final = 4
_LIMITS: Final = {"max_engines_per_user": 10, "max_unended_runs_per_user": 20}


async def fairness() -> dict[str, float]:
    """``quiet_p50_ms``, ``quiet_p99_ms``: from the agent's making of an event to its decoding, nobody else there;
    ``flooded_…``: the same while one user keeps five bad agents and four echo runs going,
    as fast as the limit of its rate allows. ``p99_ratio`` compares."""
    async with bench_stack() as stack, asker(stack, "quiet") as quiet:
        await quiet.run("paced", {"events": 100, "pause_s": _PAUSE_S})
        alone = await _latencies(quiet)
        flood = asyncio.create_task(_flood(stack))
        try:
            await asyncio.sleep(1.0)
            flooded = await _latencies(quiet)
            if flood.done():
                flood.result()
        finally:
            flood.cancel()
            await asyncio.gather(flood, return_exceptions=True)
    figures = {
        f"{name}_p{percent}_ms": percentile(taken, percent / 100) * 1e3
        for name, taken in (("quiet", alone), ("flooded", flooded))
        for percent in (50, 99)
    }
    figures["p99_ratio"] = figures["flooded_p99_ms"] / figures["quiet_p99_ms"]
    return figures


async def _latencies(one: Asker) -> list[float]:
    await one.execute("paced", params={"events": _EVENTS, "pause_s": _PAUSE_S})
    taken = []
    while True:
        for frame in await one.receive():
            if frame.get("event_type") == "agent_thinking" and "at" in frame["data"]:
                taken.append(time.time() - frame["data"]["at"])
            elif frame.get("event_type") == "run_completed":
                return taken


async def _flood(stack: Stack) -> None:
    """One user; a connection for each lane, since a lane must not wait for another's events."""
    lanes = [("hog", {"how": how}) for how in _BAD] + [("echo", None)] * _RUNS_AT_ONCE
    async with asyncio.TaskGroup() as group:
        for n, (agent, params) in enumerate(lanes):
            group.create_task(_lane(stack, f"{agent}-{n}", agent, params))


async def _lane(stack: Stack, name: str, agent: str, params: dict[str, str] | None) -> None:
    async with asker(stack, "flood", limits=_LIMITS, batch=True) as one:
        number = 0
        while True:
            number += 1
            try:
                await one.until(
                    "run_completed", run_id=await _accepted(one, agent, f"{name}-{number}", params), timeout=120
                )
            except RefusedError as refused:
                # Its rate of runs is limited, as everybody's is; it asks again as soon as it may.
                await asyncio.sleep(refused.retry_after_s)


async def _accepted(one: Asker, agent: str, client_ref: str, params: dict[str, str] | None) -> str:
    await one.execute(agent, client_ref=client_ref, params=params)
    while True:
        for frame in await one.receive():
            if frame.get("type") == "run_accepted":
                return str(frame["run_id"])
