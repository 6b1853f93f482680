"""Every open connection, so that a drain can tell them all to go, spread over time, and wait until they have gone.

Not limits, and not what users' connections listen to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from gateway.close_codes import CloseCode

__all__ = ["Connections", "Cuttable", "Endable"]

_BATCH: Final = 200
_SPREAD_MS_PER_CONNECTION: Final = 2
_LEAST_MS: Final = 250
_MOST_MS: Final = 15_000


class Endable(Protocol):
    """A session, as far as a drain needs it."""

    def end(self, code: CloseCode, *, retry_ms: int = 0) -> None: ...


class Cuttable(Protocol):
    """A connection that is open, as far as a drain needs it."""

    @property
    def transport(self) -> asyncio.Transport: ...


class Connections:
    """``WebSocketConnectionPool`` of the documents, with ``Hub``: open connections, with a session or shaking hands."""

    def __init__(self) -> None:
        self._sessions: set[Endable] = set()
        self._sockets: set[Cuttable] = set()
        self._gone = asyncio.Event()
        self._gone.set()
        self.drain_begun = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether a drain has begun."""
        return self.drain_begun.is_set()

    def __len__(self) -> int:
        return len(self._sockets)

    @contextmanager
    def opened(self, socket: Cuttable) -> Iterator[None]:
        """A connection is open while the block lasts."""
        self._sockets.add(socket)
        self._gone.clear()
        try:
            yield
        finally:
            self._sockets.discard(socket)
            if not self._sockets:
                self._gone.set()

    @contextmanager
    def session(self, session: Endable) -> Iterator[None]:
        """A session lives while the block lasts. One that begins while a drain goes on is told at once."""
        self._sessions.add(session)
        if self.draining:
            self._tell(session)
        try:
            yield
        finally:
            self._sessions.discard(session)

    async def drain(self, within_s: float) -> None:
        """Tell every session to go, and wait; what is still there after ``within_s`` is cut."""
        self.drain_begun.set()
        try:
            async with asyncio.timeout(within_s):
                for number, session in enumerate(list(self._sessions), 1):
                    self._tell(session)
                    if number % _BATCH == 0:
                        # Closing ten thousand in one turn of the loop would stall those that are being served.
                        await asyncio.sleep(0.01)
                await self._gone.wait()
        except TimeoutError:
            self.cut()

    def cut(self) -> None:
        """Cut every connection now."""
        for socket in self._sockets:
            socket.transport.abort()

    def _tell(self, session: Endable) -> None:
        # Whoever takes over should not get everybody in the same moment.
        spread = min(_MOST_MS, _SPREAD_MS_PER_CONNECTION * len(self._sessions))
        session.end(CloseCode.DRAIN, retry_ms=_LEAST_MS + random.randrange(spread + 1))  # noqa: S311 -- jitter
