"""Whole runs a second: ``agent_execute`` on a user's socket to ``run_completed`` on it, over all five processes.

Every run is durable at its admission, at its stage's end and at its own; the events are in the log before they are
seen. The loader and the stack share the machine.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.asking import asker
from benchmarks.harness import bench_stack
from benchmarks.report import percentile
from carrel.cli.stack import Stack

__all__ = ["POINTS", "RUN_SETTINGS", "runs", "runs_point"]

POINTS: Final = (1, 10, 50, 200)
AGENTS: Final = {"process": "echo", "task": "echo_task"}
_WARM_UP_S: Final = 1.0
_SECONDS: Final = 4.0
_LONGEST_S: Final = 60.0
# The users' rate and their number of engines are not what is measured; the workers stay as they are by default.
RUN_SETTINGS: Final = {"CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0", "CARREL_EXECUTION_MAX_ACTIVE_RUNS": "1000"}


async def runs() -> dict[str, float]:
    """``<isolation>_c<at once>_per_s`` and, for 1 and 50 at once, ``…_p50_ms`` and ``…_p99_ms`` of a whole run."""
    figures: dict[str, float] = {}
    async with bench_stack(RUN_SETTINGS) as stack:
        for isolation, agent in AGENTS.items():
            for at_once in POINTS:
                rate, taken = await runs_point(stack, agent, at_once, _SECONDS)
                figures[f"{isolation}_c{at_once}_per_s"] = rate
                if at_once in {1, 50}:
                    figures[f"{isolation}_c{at_once}_p50_ms"] = percentile(taken, 0.5) * 1e3
                    figures[f"{isolation}_c{at_once}_p99_ms"] = percentile(taken, 0.99) * 1e3
    return figures


async def runs_point(stack: Stack, agent: str, at_once: int, seconds: float) -> tuple[float, list[float]]:
    """(runs/s, seconds of each run) with so many at once, spread over half as many users."""
    taken: list[float] = []
    began = time.perf_counter() + _WARM_UP_S
    async with asyncio.timeout(_LONGEST_S), asyncio.TaskGroup() as group:
        users = max(1, at_once // 2)
        for n in range(users):
            each = at_once // users
            name = f"{agent}-{at_once}-{n}"
            group.create_task(_user(stack, name, agent, each, (began, began + seconds), taken))
    return len(taken) / seconds, taken


async def _user(
    stack: Stack, user: str, agent: str, each: int, window: tuple[float, float], taken: list[float]
) -> None:
    """Keep ``each`` runs going until the window is over; count those that end within it."""
    asked: dict[str, float] = {}
    number = 0
    async with asker(stack, user, batch=True) as one:

        async def ask() -> None:
            nonlocal number
            number += 1
            asked[f"r{number}"] = time.perf_counter()
            await one.execute(agent, client_ref=f"r{number}")

        by_run: dict[str, float] = {}
        for _ in range(each):
            await ask()
        while asked or by_run:
            for frame in await one.receive():
                if frame.get("type") == "run_accepted":
                    by_run[frame["run_id"]] = asked.pop(frame["client_ref"])
                elif frame.get("event_type") == "run_completed":
                    now = time.perf_counter()
                    if frame["data"].get("status") != "SUCCEEDED":
                        raise RuntimeError(f"a run ended so: {frame['data']}")
                    started = by_run.pop(frame["run_id"])
                    if window[0] <= now < window[1]:
                        taken.append(now - started)
                    if now < window[1]:
                        await ask()
