"""Whether the bridge can be relied on: UNINITIALIZED, INITIALIZING, ACTIVE, DEGRADED or FAILED.

ACTIVE is left at the first failure of the store, and entered only after a probe that really wrote. Delays between
probes end early when the store gives a sign of life. Readiness asks ``active``; liveness is none of the store's
business.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from carrel.errors import CarrelError, StoreUnavailableError
from services.bridge.models import ONE_USER, IntegrationState

__all__ = ["IntegrationMonitor", "RecoveryOptions"]


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How the bridge recovers; times in seconds.

    ``max_attempts`` probes follow a failure, the first after ``base_delay_s``, each delay twice the one before. When
    all fail the state is FAILED, which probes every ``failed_probe_s``. ACTIVE probes every ``active_probe_s``.
    A sign of life is followed by a probe at once, but not more often than every ``life_probe_s``.
    """

    max_attempts: int = 3
    base_delay_s: float = 1.0
    failed_probe_s: float = 30.0
    active_probe_s: float = 5.0
    probe_timeout_s: float = 5.0
    life_probe_s: float = 1.0


class IntegrationMonitor:
    """Watches over the store.

    Args:
        probe: Returns when the store really works, else raises a ``CarrelError``.
        options: Delays.
        changed: Told each new state.
        sleep: Waits that many seconds.
        clock: Wall clock in seconds.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        options: RecoveryOptions | None = None,
        *,
        changed: Callable[[IntegrationState], None] = lambda state: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._probe = probe
        self._options = options or RecoveryOptions()
        self._changed = changed
        self._sleep = sleep
        self._clock = clock
        self._failed = asyncio.Event()
        self._alive = asyncio.Event()
        self._life_probe_at = -math.inf
        self._retry_in = self._options.base_delay_s
        self.state = IntegrationState.UNINITIALIZED
        self.since = clock()
        self.attempts = 0
        self.last_error = ""

    @property
    def active(self) -> bool:
        """Whether everything works."""
        return self.state is IntegrationState.ACTIVE

    def require_active(self) -> None:
        """Raises:
        StoreUnavailableError: The bridge cannot be relied on now; it says when to try again.
        """
        if self.state is not IntegrationState.ACTIVE:
            raise StoreUnavailableError(
                f"the bridge is {self.state.name}: {self.last_error or 'the event log is being opened'}",
                advice="send again; nothing of this was taken",
                retry_after_s=min(self._retry_in, 5.0),
            )

    def note_failure(self, error: CarrelError) -> None:
        """The store has failed someone: leave ACTIVE now, and start to recover; unless it works for the others."""
        if error.details.get("scope") == ONE_USER:
            return
        self.last_error = error.message
        if self.active:
            self._enter(IntegrationState.DEGRADED)
        self._failed.set()

    def note_life(self) -> None:
        """The store has been reached anew: if it failed, look at once whether it works."""
        if not self.active:
            self._alive.set()

    async def initialize(self) -> None:
        """Probe for the first time.

        Raises:
            StoreUnavailableError: The store does not work; the state is FAILED.
        """
        self._enter(IntegrationState.INITIALIZING)
        if not await self._works():
            self._enter(IntegrationState.FAILED)
            raise StoreUnavailableError(self.last_error)
        self._enter(IntegrationState.ACTIVE)

    async def run(self) -> None:
        """After ``initialize``: probe, recover and probe again, for ever."""
        while True:
            if self.active:
                await self._stay()
            elif not await self._recover():
                await self._stay_failed()

    async def _stay(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.active_probe_s):
                await self._failed.wait()
        if self.active and not await self._works():
            self._enter(IntegrationState.DEGRADED)

    async def _recover(self) -> bool:
        if self.state is not IntegrationState.DEGRADED:
            self._enter(IntegrationState.DEGRADED)
        for attempt in range(self._options.max_attempts):
            if await self._works_after(self._options.base_delay_s * 2.0**attempt):
                return True
        self._enter(IntegrationState.FAILED)
        return False

    async def _stay_failed(self) -> None:
        while not await self._works_after(self._options.failed_probe_s):
            pass

    async def _works_after(self, delay_s: float) -> bool:
        """Probe after the delay, and before that whenever there is a sign of life; whether a probe succeeded."""
        self._retry_in = delay_s
        delay = asyncio.ensure_future(self._sleep(delay_s))
        try:
            while await self._lives_before(delay):
                # Not an attempt: a store that comes and goes must not use up the recoveries of this ladder.
                if await self._works():
                    self._enter(IntegrationState.ACTIVE)
                    return True
        finally:
            delay.cancel()
            await asyncio.wait([delay])
        self.attempts += 1
        if not await self._works():
            return False
        self._enter(IntegrationState.ACTIVE)
        return True

    async def _lives_before(self, delay: asyncio.Future[None]) -> bool:
        """Wait for a sign of life that may be followed by a probe; False when the delay is over first."""
        sign = asyncio.ensure_future(self._next_sign())
        try:
            await asyncio.wait([delay, sign], return_when=asyncio.FIRST_COMPLETED)
            return not delay.done()
        finally:
            sign.cancel()
            await asyncio.wait([sign])

    async def _next_sign(self) -> None:
        await self._alive.wait()
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._life_probe_at + self._options.life_probe_s - loop.time())
        self._life_probe_at = loop.time()

    async def _works(self) -> bool:
        # Before the probe: a failure or a sign of life that comes while it runs is looked into again.
        self._failed.clear()
        self._alive.clear()
        try:
            async with asyncio.timeout(self._options.probe_timeout_s):
                await self._probe()
        except TimeoutError:
            self.last_error = "the event log does not answer"
            return False
        except CarrelError as error:
            self.last_error = error.message
            return False
        return True

    def _enter(self, state: IntegrationState) -> None:
        if state is IntegrationState.ACTIVE:
            self.attempts = 0
            self._alive.clear()
        self.state = state
        self.since = self._clock()
        self._changed(state)
