"""``ResourcePool``: workers started ahead of need, each served once; honest counts of what was made and served warm.

Not the instances that use them (``core``). A worker that has served dies: nothing of one user survives the use.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from carrel.errors import CarrelError, WorkerLostError
from servicekit.telemetry.buckets import Buckets
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory

__all__ = ["Part", "ResourcePool"]

_SAMPLES: Final = 1024
_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 5.0
_REFILL_AT_ONCE: Final = 2
_TRY_AGAIN_AFTER_S: Final = (0.1, 0.4)


class Part(NamedTuple):
    """A started worker, whether it was waiting, and how long it took to get it (seconds)."""

    executor: AgentExecutor
    warm: bool
    seconds: float


class ResourcePool:
    """Keeps ``warm`` workers waiting; makes one on the spot when none waits.

    Args:
        make: A new, unstarted worker.
        warm: How many to keep waiting; 0 for none.
        start_timeout_s: How long starting one may take.
    """

    def __init__(
        self,
        make: ExecutorFactory,
        *,
        warm: int,
        start_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._target = warm
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._waiting: dict[AgentExecutor, asyncio.Task[None]] = {}  # each with the watch over its life
        self._cold = 0
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._closed = False
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self.creation_s = Buckets()
        self.created = 0
        self.served = 0
        self.reused = 0

    @property
    def idle(self) -> int:
        """Workers that wait now."""
        return len(self._waiting)

    @property
    def reuse_rate(self) -> float:
        """The share of workers that were waiting when asked for."""
        return self.reused / self.served if self.served else 0.0

    def creation_seconds(self) -> Sequence[float]:
        """How long each of the latest took to get, sorted."""
        return sorted(self._seconds)

    async def acquire(self) -> Part:
        """A started worker, warm when one waits.

        Raises:
            WorkerLostError: None waits and none can be started.
        """
        begun = self._clock()
        executor = self._take()
        warm = executor is not None
        if executor is None:
            self._cold += 1
            try:
                executor = await self._started()
            finally:
                self._cold -= 1
        self._wanted.set()
        self.served += 1
        self.reused += warm
        seconds = self._clock() - begun
        self._seconds.append(seconds)
        self.creation_s.add(seconds)
        return Part(executor, warm, seconds)

    async def keep_filled(self, report: Callable[[CarrelError], None]) -> None:
        """Refill until cancelled; a start that fails is reported and tried again, later each time.

        A few at once, so that a burst is made good; fewer while somebody waits for a worker that nobody had ready.
        """
        delay = _FIRST_DELAY_S
        while True:
            await self._wanted.wait()
            missing = self._target - len(self._waiting)
            if missing <= 0:
                self._wanted.clear()
                continue
            at_once = min(missing, 1 if self._cold else _REFILL_AT_ONCE)
            results = await asyncio.gather(*(self._refill() for _ in range(at_once)), return_exceptions=True)
            errors = [result for result in results if isinstance(result, BaseException)]
            for error in errors:
                if not isinstance(error, CarrelError):
                    raise error
                report(error)
            if errors:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_DELAY_S)
            else:
                delay = _FIRST_DELAY_S

    async def aclose(self) -> None:
        """Kill every worker that waits."""
        self._closed = True
        while (executor := self._take()) is not None:
            await executor.kill()

    def _take(self) -> AgentExecutor | None:
        """One that waits, the oldest; it is the caller's from here on."""
        if not self._waiting:
            return None
        executor = next(iter(self._waiting))
        self._waiting.pop(executor).cancel()
        return executor

    async def _refill(self) -> None:
        executor = await self._started()
        if self._closed:
            await executor.kill()
            return
        self._waiting[executor] = asyncio.create_task(self._watch(executor), name="watch over a waiting worker")

    async def _watch(self, executor: AgentExecutor) -> None:
        """Replace a worker that dies while it waits."""
        await executor.join()
        if self._waiting.pop(executor, None) is not None:
            self._wanted.set()
            await executor.kill()

    async def _started(self) -> AgentExecutor:
        """A new one. What makes them may have died under it, and is there again in a moment: it tries a few times."""
        try:
            async with asyncio.timeout(self._start_timeout_s):
                for pause in _TRY_AGAIN_AFTER_S:
                    with suppress(WorkerLostError):
                        return await self._start(self._make())
                    await asyncio.sleep(pause)
                return await self._start(self._make())
        except TimeoutError:
            raise WorkerLostError(f"a worker did not start within {self._start_timeout_s:g} s") from None

    async def _start(self, executor: AgentExecutor) -> AgentExecutor:
        try:
            await executor.start()
        except BaseException:
            await executor.kill()
            raise
        self.created += 1
        return executor
