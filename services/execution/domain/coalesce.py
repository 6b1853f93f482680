"""Writes that come one by one and go out together: whatever arrives while a write is under way goes into the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

__all__ = ["Coalescer"]

_T = TypeVar("_T")
Starter: TypeAlias = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Coalescer(Generic[_T]):
    """Hands items to ``save``, in order, several at a time.

    Args:
        save: Writes items. When it raises, they are lost, ``add`` and ``drained`` raise it from then on.
        start: Starts the writing task, which has an owner.
        bound: How many items may wait; ``add`` waits for room beyond that.
    """

    def __init__(
        self, save: Callable[[Sequence[_T]], Awaitable[None]], start: Starter, name: str, bound: int = 500
    ) -> None:
        self._save = save
        self._start = start
        self._name = name
        self._bound = bound
        self._waiting: list[_T] = []
        self._writer: asyncio.Task[None] | None = None

    async def add(self, item: _T) -> None:
        """Take an item; returns at once while there is room."""
        if self._writer is not None and self._writer.done():
            self._writer.result()
            self._writer = None
        while len(self._waiting) >= self._bound and self._writer is not None:
            await asyncio.wait([self._writer])
            self._writer.result()
        self._waiting.append(item)
        if self._writer is None or self._writer.done():
            self._writer = self._start(self._write(), self._name)

    def check(self) -> None:
        """Raise what made the writing fail, if something has: who waits for what was added would wait for ever."""
        writer = self._writer
        if writer is not None and writer.done() and not writer.cancelled():  # cancelled: the process ends
            writer.result()

    async def drained(self) -> None:
        """Wait until everything has been written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])
            self._writer.result()

    async def _write(self) -> None:
        while self._waiting:
            items, self._waiting = self._waiting, []
            await self._save(items)
