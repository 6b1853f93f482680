"""One timer for every connection's heartbeat: a wheel that turns once in an interval, with each connection in one slot.

In place of timers and tasks of each connection: ten thousand of them cost more than the pings that they send.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from gateway.held import Taken

__all__ = ["Beating", "Wheel"]

_TICK_S: Final = 0.125
_LEAST_SLOTS: Final = 8


class Beating(Protocol):
    """A connection, as the wheel knows it. Neither method may raise or wait."""

    def beat(self) -> None:
        """An interval has passed."""

    def check(self) -> None:
        """Half an interval has passed since ``beat``, and half of it is left."""


class Wheel:
    """Turns while there is something in it.

    Args:
        interval_s: Seconds between two beats of a connection.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        count = max(_LEAST_SLOTS, int(interval_s / _TICK_S) & ~1)
        self._slots: list[set[Beating]] = [set() for _ in range(count)]
        self._tick_s = interval_s / count
        self._at = 0
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._size

    def add(self, beating: Beating) -> Taken[None]:
        """Take it in; its first beat is an interval from now."""
        slot = self._slots[self._at]
        slot.add(beating)
        self._size += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._turn)
        return Taken(None, self._remove, slot, beating)

    def _remove(self, slot: set[Beating], beating: Beating) -> None:
        slot.discard(beating)
        self._size -= 1
        if not self._size and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        slots = self._slots
        self._at = (self._at + 1) % len(slots)
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._turn)
        for beating in list(slots[self._at]):
            beating.beat()
        for beating in list(slots[self._at - len(slots) // 2]):
            beating.check()
