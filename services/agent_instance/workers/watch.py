"""``WorkerWatch``: looks at what serving workers use, and ends the one that goes beyond it.

The kernel's limits come first (``sandbox``); this sees what they do not: shared memory, and a folder's whole size.
One that computes without end is not ended here, but gives way to the others: on a full machine an agent that loops
costs itself the most.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carrel.errors import WorkerLimitError
from services.agent_instance.workers.datagrams import WorkerLimits
from services.agent_instance.workers.folders import tree_size

__all__ = ["Watched", "WorkerWatch"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_FOLDER_EVERY: Final = 4
_BUSY_AFTER_S: Final = 0.5
_BUSY_NICE: Final = 10


@dataclass(slots=True, eq=False)
class Watched:
    """A worker to look at. ``memory`` is its open ``smaps_rollup``; ``end`` is called when ``over`` has been set."""

    pid: int
    memory: int
    folder: Path
    end: Callable[[], None]
    over: WorkerLimitError | None = None
    gives_way: bool = False

    def close(self) -> None:
        """Close what it holds open. Idempotent."""
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


class WorkerWatch:
    """Looks at each worker in turn, until cancelled.

    Args:
        limits: What each may use.
        folder_bytes: How large its temporary folder may become.
    """

    def __init__(self, limits: WorkerLimits, folder_bytes: int, *, interval_s: float = 0.25) -> None:
        self.limits = limits
        self._folder_bytes = folder_bytes
        self._interval_s = interval_s
        self._workers: set[Watched] = set()

    def add(self, worker: Watched) -> None:
        """Look at it from now on."""
        self._workers.add(worker)

    def remove(self, worker: Watched) -> None:
        """Leave it alone."""
        self._workers.discard(worker)

    async def memory(self) -> list[int]:
        """Bytes of each worker's own, in a thread: it costs a walk over its page tables."""
        # Copies, since a worker may end meanwhile, and its number be given to another file.
        files = [os.dup(worker.memory) for worker in self._workers if worker.memory >= 0]

        def read() -> list[int]:
            try:
                return [_pss(file) for file in files]
            finally:
                for file in files:
                    os.close(file)

        return await asyncio.to_thread(read)

    async def run(self) -> None:
        """Look until cancelled."""
        turn = 0
        while True:
            await asyncio.sleep(self._interval_s)
            turn += 1
            for worker in list(self._workers):
                self._look_at_memory(worker)
                if not worker.gives_way and _processor_s(worker.pid) > _BUSY_AFTER_S:
                    worker.gives_way = True
                    _give_way(worker.pid)
            if turn % _FOLDER_EVERY == 0:
                await self._look_at_folders()

    def _look_at_memory(self, worker: Watched) -> None:
        limit = self.limits.memory
        # What is resident is cheap to know but counts the zygote's pages, too; what is the worker's own costs a walk
        # over its page tables.
        if _resident(worker.pid) <= limit // 2:
            return
        use = _proportional(worker)
        if use > limit:
            problem = f"the agent used {use >> 20} MB of the {limit >> 20} MB that its process may have"
            self._end(worker, WorkerLimitError(problem, limit="memory", limit_value=limit, use=use))

    async def _look_at_folders(self) -> None:
        for worker in list(self._workers):
            if not _is_empty(worker.folder):
                use = await asyncio.to_thread(tree_size, worker.folder)
                if use > self._folder_bytes:
                    limit = self._folder_bytes
                    problem = f"the agent's temporary files take more than the {limit >> 20} MB that they may"
                    self._end(worker, WorkerLimitError(problem, limit="files", limit_value=limit, use=use))

    def _end(self, worker: Watched, error: WorkerLimitError) -> None:
        if worker in self._workers:
            self._workers.discard(worker)
            worker.over = error
            worker.end()


def _resident(pid: int) -> int:
    try:
        with Path(f"/proc/{pid}/statm").open("rb", buffering=0) as statm:
            return int(statm.read(128).split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _processor_s(pid: int) -> float:
    try:
        with Path(f"/proc/{pid}/stat").open("rb", buffering=0) as stat:
            fields = stat.read(1024).rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
    except (OSError, IndexError, ValueError):
        return 0.0


def _give_way(pid: int) -> None:
    # Its group is itself, its threads and what it has started.
    with suppress(OSError):
        os.setpriority(os.PRIO_PGRP, pid, _BUSY_NICE)


def _proportional(worker: Watched) -> int:
    return 0 if worker.memory < 0 else _pss(worker.memory)


def _pss(file: int) -> int:
    try:
        lines = os.pread(file, 4096, 0).splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss:", b"SwapPss:")))


def _is_empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True
