"""A thousand users with a run under way at once, on one stack: do all of them run, and how late are their events."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

from benchmarks.asking import UNLIMITED, Asker, asker
from benchmarks.connections_case import ONE_ADDRESS
from benchmarks.harness import bench_stack
from benchmarks.report import percentile
from carrel.cli.stack import Stack

__all__ = ["active_users"]

_USERS: Final = int(os.environ.get("BENCH_USERS", "1000"))
_PARAMS: Final = {"events": 10, "pause_s": 3.0}
_AT_ONCE: Final = 50
_LONGEST_S: Final = 150.0
_SETTINGS: Final = {
    **ONE_ADDRESS,
    "CARREL_EXECUTION_MAX_ACTIVE_RUNS": str(2 * _USERS),
    "CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0",
    "CARREL_AGENT_INSTANCE_MAX_WORKERS": str(2 * _USERS),
}


class _Census:
    """How many runs are between their first event and their end, and what their events' ages were."""

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.most_active = 0
        self.ages: list[float] = []
        self.statuses: list[str] = []

    def see(self, frame: dict[str, Any]) -> None:
        """One event of a run."""
        kind, run_id = frame["event_type"], frame["run_id"]
        if kind == "run_completed":
            self.active.discard(run_id)
            self.statuses.append(frame["data"]["status"])
        elif kind == "agent_thinking":
            self.active.add(run_id)
            self.most_active = max(self.most_active, len(self.active))
            self.ages.append(time.time() - frame["data"]["at"])


async def active_users() -> dict[str, float]:
    """``active_at_once``: the most runs that were under way together, of 1,000 users with one each; ``begun_s``: until
    the last had begun; ``event_p50_ms``, ``event_p99_ms`` from the agent to the socket; ``not_succeeded``.

    The agents are tasks: a thousand worker processes are a question of memory and no other.
    """
    census, turn = _Census(), asyncio.Semaphore(_AT_ONCE)
    async with bench_stack(_SETTINGS) as stack, asyncio.timeout(_LONGEST_S), asyncio.TaskGroup() as group:
        began = time.monotonic()
        begun = [group.create_task(_user(stack, f"active{number}", turn, census, began)) for number in range(_USERS)]
    return {
        "active_at_once": census.most_active,
        "begun_s": max(task.result() for task in begun),
        "event_p50_ms": percentile(census.ages, 0.5) * 1e3,
        "event_p99_ms": percentile(census.ages, 0.99) * 1e3,
        "not_succeeded": _USERS - census.statuses.count("SUCCEEDED"),
        "events": len(census.ages),
    }


async def _user(stack: Stack, user: str, turn: asyncio.Semaphore, census: _Census, began: float) -> float:
    """One user's run from asking to its end; seconds until it had begun."""
    async with asker(stack, user, limits=UNLIMITED) as one:
        async with turn:
            await one.execute("paced_task", params=_PARAMS)
            await _follow(one, census, "agent_thinking")
        begun = time.monotonic() - began
        await _follow(one, census, "run_completed")
    return begun


async def _follow(one: Asker, census: _Census, until: str) -> None:
    while True:
        for frame in await one.receive(_LONGEST_S):
            if "event_type" in frame:
                census.see(frame)
                if frame["event_type"] == until:
                    return
