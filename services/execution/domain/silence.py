"""Notices that an attempt gives no sign of life. Fair after a pause: it looks once more before it says so.

After this process stood still (stopped, suspended, starved) the time is over before anything is read that arrived
meanwhile; so the loop gets a bounded turn to hand it over first. Not a limit on how long an attempt may take.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

__all__ = ["LAST_LOOK_S", "SilenceWatch"]

LAST_LOOK_S: Final = 1.0


class SilenceWatch:
    """A block that ends with ``TimeoutError`` when nothing is heard for ``silence_s``, or at the time of ``end_at``.

    Args:
        silence_s: After so many seconds without ``heard`` it looks once more.
        last_look_s: How long that takes; at most half of ``silence_s``.
    """

    def __init__(self, silence_s: float, last_look_s: float = LAST_LOOK_S) -> None:
        self._silence_s = silence_s
        self._last_look_s = min(last_look_s, silence_s / 2)
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()
        self._looking = self._fixed = False

    @property
    def expired(self) -> bool:
        """Whether it was this clock that ended the block."""
        return self._timeout.expired()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._heard_at = self._loop.time()
        self._look_at(self._heard_at + self._silence_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def heard(self) -> None:
        """There was a sign of life."""
        # No new timer: this is called for every message.
        self._heard_at = self._loop.time()
        if self._looking and not self._fixed and not self.expired:
            self._looking = False
            self._timeout.reschedule(None)
            self._look_at(self._heard_at + self._silence_s)

    def end_at(self, when: float) -> None:
        """End the block at this time of the loop's clock, whatever is heard."""
        self._fixed = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.expired:
            self._timeout.reschedule(when)

    def _look_at(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        now, due = self._loop.time(), self._heard_at + self._silence_s
        if now < due:
            self._look_at(due)
            return
        self._looking = True
        self._timeout.reschedule(now + self._last_look_s)
