"""Cancelling: from the ``agent_cancel`` frame to the agent's CancelledError, or to the end of one that ignores it."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.asking import Asker, asker
from benchmarks.harness import bench_stack, reached
from benchmarks.report import percentile

__all__ = ["cancel"]

_POLITE: Final = 50
_STUBBORN: Final = 40
_LONGEST_S: Final = 10.0


async def cancel() -> dict[str, float]:
    """``ask_p50_ms``, ``ask_p99_ms``: to the agent's CancelledError, by its own clock. ``dead_p50_ms``,
    ``dead_p99_ms``: to the end of the worker of an agent that ignores it, half of them waiting and half spinning.
    ``told_p50_ms``: to ``run_completed`` of the first kind."""
    async with bench_stack() as stack, asker(stack, "cancel") as one:
        asked, told = [], []
        for _ in range(_POLITE):
            run = await _begun(one, "polite", {})
            began = await _cancel(one, run)
            note = Path(run["data"]["folder"]) / "cancelled"
            # What the agent wrote; looking for it now and then takes nothing from the figure.
            asked.append(await reached(partial(_read, note), _LONGEST_S) - began)
            await one.until("run_completed", run_id=run["run_id"])
            told.append(time.monotonic() - began)
        dead = []
        for n in range(_STUBBORN):
            run = await _begun(one, "stubborn", {"busy": n % 2 == 1})
            gone = asyncio.get_running_loop().create_task(_gone(run["data"]["pid"]))
            await asyncio.sleep(0)
            began = await _cancel(one, run)
            dead.append(await gone - began)
            await one.until("run_completed", run_id=run["run_id"])
    return {
        "ask_p50_ms": percentile(asked, 0.5) * 1e3,
        "ask_p99_ms": percentile(asked, 0.99) * 1e3,
        "told_p50_ms": percentile(told, 0.5) * 1e3,
        "dead_p50_ms": percentile(dead, 0.5) * 1e3,
        "dead_p99_ms": percentile(dead, 0.99) * 1e3,
    }


async def _begun(one: Asker, agent: str, params: dict[str, Any]) -> dict[str, Any]:
    await one.execute(agent, params=params)
    return await one.until("agent_thinking")


async def _cancel(one: Asker, run: dict[str, Any]) -> float:
    began = time.monotonic()
    await one.send(type="agent_cancel", run_id=run["run_id"])
    return began


def _read(note: Path) -> float:
    try:
        return float(note.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0.0


async def _gone(pid: int) -> float:
    """When the process ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.monotonic()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(_LONGEST_S):
            await ended.wait()
        return time.monotonic()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
