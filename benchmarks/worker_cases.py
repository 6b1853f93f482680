"""Worker processes by themselves: how long one takes from asking to its agent's first line, and what it holds.

No service around them: the pool and the zygote of agent_instance, in this process, with the echo agents loaded.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness import ECHO_AGENTS, reached
from benchmarks.report import percentile
from carrel.agent_codec import decode, encode
from carrel.agent_messages import EmitEvent, Start
from carrel.context import UserExecutionContext
from carrel.errors import CarrelError
from carrel.ids import new_id
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.domain.pool import Part, ResourcePool
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.workers.plant import open_workers

__all__ = ["memory_per_run", "worker_start"]

_ROUNDS: Final = 200
_WARM: Final = 4
_IDLE: Final = 10

# A fork and nothing more, from a program that has loaded what a zygote has: what the machine itself takes.
_BARE: Final = """
import asyncio, gc, os, sys, time
import carrel.agent_runtime
gc.collect(); gc.freeze()
took = []
for _ in range(int(sys.argv[1])):
    reading, writing = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        if sys.argv[2] == "loop":
            asyncio.new_event_loop()
        os.write(writing, repr(time.monotonic()).encode())
        os._exit(0)
    took.append(float(os.read(reading, 64)) - began)
    os.waitpid(pid, 0)
    os.close(reading); os.close(writing)
took.sort()
print(took[len(took) // 2])
"""


async def worker_start() -> dict[str, float]:
    """``warm_p50_ms``, ``warm_p99_ms``, ``cold_p50_ms``, ``cold_p99_ms``; ``bare_fork_ms`` and ``bare_fork_loop_ms``
    are a fork without anything, and with an event loop made, in the same minute; ``cold_to_bare`` compares."""
    figures: dict[str, float] = {}
    for kind, warm in (("warm", _WARM), ("cold", 0)):
        async with _pool(warm) as (pool, registry):
            taken = []
            for _ in range(_ROUNDS):
                taken.append(await _first_line(pool, registry))
                await _filled(pool, warm)
        figures[f"{kind}_p50_ms"] = percentile(taken, 0.5) * 1e3
        figures[f"{kind}_p99_ms"] = percentile(taken, 0.99) * 1e3
    figures["bare_fork_ms"] = await _bare("none") * 1e3
    figures["bare_fork_loop_ms"] = await _bare("loop") * 1e3
    figures["cold_to_bare"] = figures["cold_p50_ms"] / figures["bare_fork_loop_ms"]
    return figures


async def memory_per_run() -> dict[str, float]:
    """``worker_private_mb``: the median private memory (clean and dirty) of idle workers; and ``worker_pss_mb``."""
    async with _pool(_IDLE) as (pool, _):
        await asyncio.sleep(0.5)
        parts = [await pool.acquire() for _ in range(_IDLE)]
        try:
            rollups = [_rollup(part) for part in parts]
        finally:
            for part in parts:
                await part.executor.kill()
    private = [rollup["Private_Clean"] + rollup["Private_Dirty"] for rollup in rollups]
    return {
        "worker_private_mb": percentile(private, 0.5) / 1024,
        "worker_pss_mb": percentile([rollup["Pss"] for rollup in rollups], 0.5) / 1024,
    }


@asynccontextmanager
async def _pool(warm: int) -> AsyncIterator[tuple[ResourcePool, AgentClassRegistry]]:
    with tempfile.TemporaryDirectory(prefix="carrel-bench-") as folder:
        settings = AgentInstanceSettings(agents=(str(ECHO_AGENTS),), state_dir=Path(folder))
        registry = AgentClassRegistry.load(settings.agents)
        async with open_workers(settings, registry) as make:
            pool = ResourcePool(make, warm=warm)
            filling = asyncio.create_task(pool.keep_filled(_report))
            try:
                await _filled(pool, warm)
                yield pool, registry
            finally:
                filling.cancel()
                await asyncio.gather(filling, return_exceptions=True)
                await pool.aclose()


async def _filled(pool: ResourcePool, warm: int) -> None:
    await reached(lambda: pool.idle >= warm, 20)


async def _first_line(pool: ResourcePool, registry: AgentClassRegistry) -> float:
    context = UserExecutionContext(
        user_id="bench", thread_id=new_id("thread"), run_id=new_id("run"), request_id=new_id("req")
    )
    start = encode(Start(context.to_dict(), "stamp", {"message": "hello"}))
    entry = registry.entry("stamp")
    began = time.monotonic()
    part = await pool.acquire()
    try:
        await part.executor.initialize(entry)
        await part.executor.send(start)
        while True:
            frame = await part.executor.receive()
            if frame is None:
                raise RuntimeError(f"the worker ended: {part.executor.loss} {part.executor.output!r}")
            message = decode(frame)
            if isinstance(message, EmitEvent):
                return float(message.data["at"]) - began
    finally:
        await part.executor.kill()


async def _bare(kind: str) -> float:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _BARE, str(_ROUNDS), kind, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return float(said)


def _rollup(part: Part) -> dict[str, int]:
    """KiB by name. Read through the descriptor that the worker gave its host: nobody else may look."""
    watched = part.executor._watched  # type: ignore[attr-defined]  # noqa: SLF001 -- nobody else has a use for it
    text = os.pread(watched.memory, 8192, 0).decode("ascii")
    rows = (line.split() for line in text.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def _report(error: CarrelError) -> None:
    raise RuntimeError(f"no worker can be started: {error}")
