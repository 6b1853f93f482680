"""A model's text on its way into events: one event per 50 ms or 1 KiB, whichever comes first.

The first piece goes out at once, so that a reader sees the answer begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

__all__ = ["Speech", "split_text"]

_INTERVAL_S: Final = 0.05
_FULL_CHARS: Final = 1024
# Six bytes of JSON a character at worst: within the bound of agent_thinking (16 KiB), and of agent_message.
_MAX_CHARS: Final = 2048


def split_text(text: str) -> list[str]:
    """Text in pieces that fit an event each."""
    return [text[start : start + _MAX_CHARS] for start in range(0, len(text), _MAX_CHARS)]


class Speech:
    """Says what is added, joined. Leaving the block says the rest, unless an error leaves it.

    Args:
        say: Emits one event; waits while the log is behind, and then what comes meanwhile is joined.
    """

    def __init__(self, say: Callable[[str], Awaitable[None]], *, interval_s: float = _INTERVAL_S) -> None:
        self._say = say
        self._interval_s = interval_s
        self._pieces: list[str] = []
        self._chars = 0
        self._some = asyncio.Event()
        self._saying = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._speak(), name="speech of a model")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        try:
            # What is being said is said to its end; after an error nobody waits for it.
            if error is None and not self._loop.done():
                await self._flush()
        finally:
            self._loop.cancel()
            await asyncio.wait({self._loop})
            fault = None if self._loop.cancelled() else self._loop.exception()
        if fault is not None and error is None:
            raise fault

    async def add(self, piece: str) -> None:
        """Add a piece of text.

        Raises:
            CarrelError: An earlier piece could not be said.
        """
        assert self._loop is not None
        if self._loop.done():
            self._loop.result()
        self._pieces.append(piece)
        self._chars += len(piece)
        if self._chars >= _FULL_CHARS:
            await self._flush()
        else:
            self._some.set()

    async def _speak(self) -> None:
        while True:
            await self._some.wait()
            await self._flush()
            await asyncio.sleep(self._interval_s)

    async def _flush(self) -> None:
        async with self._saying:
            text = "".join(self._pieces)
            self._pieces.clear()
            self._chars = 0
            self._some.clear()
            for part in split_text(text):
                await self._say(part)
