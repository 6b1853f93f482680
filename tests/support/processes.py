"""The processes below a running stack, as the kernel sees them: zygotes, workers, what they hold.

Read from /proc, which needs no help of the product's; where the kernel refuses (a process that may not be inspected, a
caller that is not root), the answer is None.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ZYGOTE = b"agent_instance.workers.zygote"


@dataclass(frozen=True)
class Holdings:
    """What some processes hold together: their number, open descriptors, resident memory (MiB)."""

    processes: int
    descriptors: int
    memory_mb: float


def children(pid: int) -> list[int]:
    """Its child processes that have not ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text(encoding="ascii").split())
    return [child for child in found if alive(child)]


def below(pid: int) -> list[int]:
    """The process and all below it."""
    return [pid, *(each for child in children(pid) for each in below(child))]


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def zygote_pid(agent_instance: int) -> int | None:
    """The program that forks the workers."""
    return next((pid for pid in children(agent_instance) if _ZYGOTE in _command(pid)), None)


def worker_pids(agent_instance: int) -> list[int]:
    """Worker processes, those that wait included."""
    zygote = zygote_pid(agent_instance)
    return [] if zygote is None else children(zygote)


def kill_all(pids: Iterable[int], number: int = signal.SIGKILL) -> int:
    """Send a signal to each that is still there; how many were."""
    sent = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            sent += 1
    return sent


def holdings(pids: Iterable[int]) -> Holdings:
    """What they hold, as far as it can be seen."""
    there = [pid for pid in pids if alive(pid)]
    return Holdings(len(there), sum(map(_descriptors, there)), sum(map(_memory_mb, there)))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _memory_mb(pid: int) -> float:
    """Proportional where that can be read, so that pages which forked processes share count once."""
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/{name}").read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) / 1024
    return 0.0
