"""``kill -9`` in the middle of a run: seconds until the user sees the run go on, with default settings."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any, Final

from benchmarks.asking import Asker, asker
from benchmarks.harness import bench_stack, reached
from benchmarks.report import percentile
from carrel.cli.stack import Stack

__all__ = ["recovery"]

_ROUNDS: Final = 5
_VICTIMS: Final = ("worker", "agent_instance", "execution")
_LONGEST_S: Final = 30.0


async def recovery() -> dict[str, float]:
    """``<killed>_first_event_s``: the median of five kills, until the first event of the agent's next attempt;
    ``<killed>_worst_s``: the longest; ``<killed>_told_s``: until ``run_attempt``, the median."""
    figures: dict[str, float] = {}
    async with bench_stack() as stack, asker(stack, "recovery") as one:
        for victim in _VICTIMS:
            taken = [await _round(stack, one, victim) for _ in range(_ROUNDS)]
            figures[f"{victim}_first_event_s"] = percentile([seconds for _, seconds in taken], 0.5)
            figures[f"{victim}_worst_s"] = max(seconds for _, seconds in taken)
            figures[f"{victim}_told_s"] = percentile([seconds for seconds, _ in taken], 0.5)
    return figures


async def _round(stack: Stack, one: Asker, victim: str) -> tuple[float, float]:
    """Seconds until the user is told of another attempt, and until that attempt's first event."""
    await one.execute("paced", params={"events": 10_000, "pause_s": 0.02})
    seen = [await one.until("agent_thinking") for _ in range(10)]
    run_id, pid = seen[-1]["run_id"], seen[-1]["data"]["pid"]
    os.kill(pid if victim == "worker" else stack.pids()[victim], signal.SIGKILL)
    began = time.monotonic()
    async with asyncio.timeout(_LONGEST_S):
        told = first = 0.0
        while not first:
            for frame in await one.receive():
                if not told and _of(frame, run_id) and frame["event_type"] == "run_attempt":
                    told = time.monotonic() - began
                elif _of(frame, run_id) and (frame.get("attempt") or 0) > 1:
                    first = time.monotonic() - began
                    break
    await _end(one, run_id)
    await _ready(stack)
    return told, first


def _of(frame: dict[str, Any], run_id: str) -> bool:
    if frame.get("run_id") != run_id or "event_type" not in frame:
        return False
    if frame["event_type"] == "run_completed":
        raise RuntimeError(f"the run ended: {frame['data']}")
    return True


async def _end(one: Asker, run_id: str) -> None:
    await one.send(type="agent_cancel", run_id=run_id)
    await one.until("run_completed", run_id=run_id)


async def _ready(stack: Stack) -> None:
    """Until all five are ready again, so that one round does not measure the last one's restart."""
    await reached(lambda: all(facts["ready"] for facts in stack.facts()["processes"].values()), _LONGEST_S)
