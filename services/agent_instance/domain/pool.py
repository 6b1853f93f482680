"""``ResourcePool``: workers started ahead of need, each served once; honest counts of what was made and served warm.

Not the instances that use them (``core``). A worker that has served dies: nothing of one user survives the use.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from carrel.errors import CarrelError, WorkerLostError
from services.agent_instance.domain.executor import AgentExecutor, ExecutorFactory

__all__ = ["Part", "ResourcePool"]

_SAMPLES: Final = 1024
_FIRST_DELAY_S: Final = 0.1
_MAX_DELAY_S: Final = 5.0


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
        self._waiting: deque[AgentExecutor] = deque()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._closed = False
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
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
        warm = bool(self._waiting)
        executor = self._waiting.popleft() if warm else await self._started()
        self._wanted.set()
        self.served += 1
        self.reused += warm
        seconds = self._clock() - begun
        self._seconds.append(seconds)
        return Part(executor, warm, seconds)

    async def keep_filled(self, report: Callable[[CarrelError], None]) -> None:
        """Refill until cancelled; a start that fails is reported and tried again, later each time."""
        delay = _FIRST_DELAY_S
        while True:
            await self._wanted.wait()
            if len(self._waiting) >= self._target:
                self._wanted.clear()
                continue
            try:
                self._waiting.append(await self._started())
            except CarrelError as error:
                report(error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_DELAY_S)
            else:
                delay = _FIRST_DELAY_S

    async def aclose(self) -> None:
        """Kill every worker that waits."""
        while self._waiting:
            await self._waiting.popleft().kill()

    async def _started(self) -> AgentExecutor:
        executor = self._make()
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await executor.start()
        except TimeoutError:
            await executor.kill()
            raise WorkerLostError(f"a worker did not start within {self._start_timeout_s:g} s") from None
        except BaseException:
            await executor.kill()
            raise
        self.created += 1
        return executor
