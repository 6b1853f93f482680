"""``PeriodicUpdateManager``: an agent that is silent for long still shows its user that it works.

Such an update is the host's word, not the agent's: it does not count as activity and never delays a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["PeriodicUpdateManager"]

_LEAST_WAIT_S: Final = 0.01


class PeriodicUpdateManager:
    """``periodic_update_manager`` of the documents: says "still working" for silent agents, at most ``limit`` at once.

    Args:
        interval_s: The silence after which, and the interval at which, an update is sent.
        limit: How many agents may be spoken for at once; further silent ones wait for a place.
    """

    def __init__(self, *, interval_s: float = 10.0, limit: int = 30) -> None:
        self._interval_s = interval_s
        self._limit = limit
        self._active = 0

    @property
    def active(self) -> int:
        """Agents that are spoken for now."""
        return self._active

    async def speak_for(self, silent_s: Callable[[], float], say: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled: call ``say`` each interval in which the agent (``silent_s``) has said nothing itself."""
        holds = False
        wait = self._interval_s
        try:
            while True:
                await asyncio.sleep(max(wait, _LEAST_WAIT_S))
                silent = silent_s()
                if silent < self._interval_s:
                    if holds:
                        self._active, holds = self._active - 1, False
                    wait = self._interval_s - silent
                    continue
                if not holds and self._active < self._limit:
                    self._active, holds = self._active + 1, True
                if holds:
                    await say()
                wait = self._interval_s
        finally:
            if holds:
                self._active -= 1
