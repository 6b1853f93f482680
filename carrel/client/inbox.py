"""What has come and the application has not taken yet: bounded, in order, with the position that each item brings.

``taken`` is where the application is; ``done`` is where it was when it asked for more, so everything up to there has
been worked on. No connection here; ``link.py`` fills it, reads ``done`` and tells the gateway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from carrel.client.models import Event, Position
from carrel.client.notices import Notice
from carrel.errors import CarrelError

__all__ = ["Inbox"]


class _Entry(NamedTuple):
    item: Event | Notice | None
    position: Position
    size: int


class Inbox:
    """Args:
    window: How many items it should hold at most.
    max_bytes: How many bytes of messages.
    position: Where the application is at the beginning.
    """

    def __init__(self, window: int, max_bytes: int, position: Position) -> None:
        self._window = window
        self._max_bytes = max_bytes
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._waiting = False
        self._ended = False
        self._failure: CarrelError | None = None
        self.taken = position
        self.done = position
        self.most = 0
        self.on_done: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """How many more items it should get."""
        return max(0, self._window - len(self._entries))

    def full(self, times: int = 1) -> bool:
        """Whether it holds all that it should, or ``times`` as many items."""
        return len(self._entries) >= self._window * times or self._bytes >= self._max_bytes

    async def emptied(self, times: int = 1) -> None:
        """Wait until it is not ``full``."""
        while self.full(times):
            self._emptied.clear()
            await self._emptied.wait()

    async def half_empty(self, urgent: Callable[[], bool]) -> None:
        """Wait until at least half of its room is free; or any of it, when it is urgent."""
        while len(self._entries) * 2 > self._window or self._bytes * 2 > self._max_bytes:
            if urgent() and not self.full():
                return
            self._emptied.clear()
            await self._emptied.wait()

    def nudge(self) -> None:
        """Something may have become urgent."""
        self._emptied.set()

    def begin(self, position: Position) -> None:
        """The application begins at a place that it was told, before anything has come."""
        self.taken = self.done = position

    def put(self, item: Event | Notice | None, position: Position, size: int = 0) -> None:
        """Add an item, or None for progress alone.

        Args:
            item: What the application is to get.
            position: Where it is once it has taken the item.
            size: Bytes that the item keeps busy.
        """
        if item is None and self._entries and self._entries[-1].item is None:
            size += self._entries.pop().size
        self._entries.append(_Entry(item, position, size))
        self._bytes += size
        self.most = max(self.most, len(self._entries))
        self._filled.set()

    def end(self, failure: CarrelError | None) -> None:
        """Nothing follows what is here; ``failure`` says why, None that it was wished."""
        if not self._ended:
            self._ended, self._failure = True, failure
            self._filled.set()

    def settle(self) -> None:
        """What was taken has been worked on: the application asks for more."""
        if self.done != self.taken:
            self.done = self.taken
            self.on_done()

    async def take(self) -> Event | Notice | None:
        """The next item; None at the wished end.

        Raises:
            CarrelError: The end was not wished.
            RuntimeError: Somebody else waits for the next one already.
        """
        if self._waiting:
            raise RuntimeError("two tasks read one client's events; read them in one task and hand them on from there")
        self.settle()
        self._waiting = True
        try:
            while True:
                while self._entries:
                    entry = self._entries.popleft()
                    self._bytes -= entry.size
                    self.taken = entry.position
                    self._emptied.set()
                    if entry.item is not None:
                        return entry.item
                    self.settle()
                if self._ended:
                    break
                self._filled.clear()
                await self._filled.wait()
        finally:
            self._waiting = False
        if self._failure is not None:
            raise self._failure
        return None
