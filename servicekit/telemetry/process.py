"""What every process tells of itself: memory, processor, open files, the event loop's lag, readiness, its version."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import carrel
from servicekit.health import Readiness
from servicekit.telemetry.buckets import LATENCY_S, Buckets
from servicekit.telemetry.meters import Meters

__all__ = ["LOOP_LAG", "observe_process", "observe_readiness", "resident_bytes"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")

# One event loop for each process, and so one lag: the watchdog adds to it, whoever started it.
LOOP_LAG: Final = Buckets(LATENCY_S)


def resident_bytes() -> int:
    """Memory of this process that is in RAM, pages shared with others included."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE


def observe_process(meters: Meters) -> None:
    """Register what needs nothing of the service."""
    files = 0

    async def count_files() -> None:
        nonlocal files
        # In a thread: a gateway with ten thousand sockets has as many entries to list.
        files = await asyncio.to_thread(lambda: len(os.listdir("/proc/self/fd")))  # noqa: PTH208 -- names are enough

    meters.refresh("open files", count_files)
    meters.read("carrel_process_memory_bytes", resident_bytes)
    meters.read("carrel_process_cpu_seconds_total", time.process_time)
    meters.read("carrel_metrics_failures_total", lambda: meters.failures)
    meters.read("carrel_process_open_files", lambda: files)
    began = _began()
    meters.read("carrel_process_start_time_seconds", lambda: began)
    meters.histogram("carrel_event_loop_lag_seconds", LOOP_LAG)
    meters.read("carrel_build_info", lambda: {carrel.__version__: 1})


def observe_readiness(meters: Meters, readiness: Readiness) -> None:
    """Register what the readiness checks said at their last look."""
    meters.read("carrel_service_ready", lambda: int(readiness.ready))
    meters.read(
        "carrel_readiness_check", lambda: {name: int(name not in readiness.failing) for name in readiness.names}
    )


def _began() -> float:
    """When the process began, as Unix time."""
    boot = next(line for line in Path("/proc/stat").read_text("ascii").splitlines() if line.startswith("btime "))
    ticks = int(Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19])
    return int(boot.split()[1]) + ticks * _TICK_S
