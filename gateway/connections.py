"""Every open connection, so that a drain can tell them all to go, spread over time, and wait until they have gone.

Owns the short tasks that connections need at their beginning and end. Not limits, and not what users' connections
listen to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine
from typing import Any, Final, Protocol

from gateway.close_codes import CloseCode
from gateway.held import Taken
from gateway.jitter import retry_ms, window_ms
from gateway.tally import Lane
from servicekit.tasks import TaskOwner

__all__ = ["Connections", "Cuttable", "Endable"]

SPREAD_S_PER_CONNECTION: Final = 0.002
# Of the time that a drain has; the rest is for closing.
SPREAD_SHARE: Final = 0.5
_TICK_S: Final = 0.02
_CUT_S: Final = 1.0
# Another gateway takes over at once, so few need not wait long.
_LEAST_MS: Final = 250


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
        self._lanes: set[Lane] = set()
        self._gone = asyncio.Event()
        self._gone.set()
        # One connection's fault, which the log says, is no reason to end everybody's.
        self._tasks = TaskOwner(on_failure=lambda name, error: None)
        self._spread_ms = _LEAST_MS
        self.drain_begun = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether a drain has begun."""
        return self.drain_begun.is_set()

    def __len__(self) -> int:
        return len(self._sockets)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do a connection's work as a task.

        Raises:
            RuntimeError: All has ended.
        """
        return self._tasks.start(work, name)

    def opened(self, socket: Cuttable) -> Taken[None]:
        """A connection is open from now on."""
        self._sockets.add(socket)
        self._gone.clear()
        return Taken(None, self._closed, socket)

    def _closed(self, socket: Cuttable) -> None:
        self._sockets.discard(socket)
        if not self._sockets:
            self._gone.set()

    def session(self, session: Endable) -> Taken[None]:
        """A session lives from now on. One that begins while a drain goes on is told at once."""
        self._sessions.add(session)
        if self.draining:
            self._tell(session)
        return Taken(None, self._sessions.discard, session)

    def lane(self, lane: Lane) -> Taken[None]:
        """A session sends from now on; for statistics."""
        self._lanes.add(lane)
        return Taken(None, self._lanes.discard, lane)

    def lanes(self) -> Collection[Lane]:
        """The sending sides of all sessions."""
        return self._lanes

    async def drain(self, within_s: float) -> None:
        """Tell every session to go, evenly over half of the time at most, and wait; what is left then is cut."""
        self.drain_begun.set()
        try:
            async with asyncio.timeout(within_s):
                await self._tell_all(within_s * SPREAD_SHARE)
                await self._gone.wait()
        except TimeoutError:
            self.cut()

    async def _tell_all(self, most_s: float) -> None:
        """Not all at once: closing ten thousand would stall those that are served, and fall on the next gateway."""
        sessions = list(self._sessions)
        spread_s = min(most_s, SPREAD_S_PER_CONNECTION * len(sessions))
        self._spread_ms = window_ms(len(sessions), _LEAST_MS)
        at_once = max(1, int(len(sessions) * _TICK_S / spread_s)) if spread_s else len(sessions)
        for number, session in enumerate(sessions, 1):
            if session in self._sessions:
                self._tell(session)
            if number % at_once == 0 and number < len(sessions):
                await asyncio.sleep(_TICK_S)

    async def aclose(self) -> None:
        """Cut what is left, and wait until its tasks have ended."""
        self.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await self._gone.wait()
        await self._tasks.aclose()

    def cut(self) -> None:
        """Cut every connection now."""
        for socket in list(self._sockets):
            socket.transport.abort()

    def _tell(self, session: Endable) -> None:
        # Whoever takes over should not get everybody in the same moment.
        session.end(CloseCode.DRAIN, retry_ms=retry_ms(self._spread_ms))
