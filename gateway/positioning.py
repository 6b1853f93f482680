"""Where a connection begins to read: at the top, or after the position that it brings, once the log has confirmed it.

What a client sees of it is ``connected``, and ``reset`` where its position is unusable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from carrel.errors import CarrelError, UnavailableError
from gateway.hub import Feed
from gateway.log_reader import LogReader, Piece, RunLog
from gateway.login import Login
from gateway.outflow import Outflow
from gateway.ring import Cursor, Place

__all__ = ["Positioning", "Start"]

T = TypeVar("T")
_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Start:
    """Where a connection begins, and what has been read for it already."""

    cursor: Cursor
    recovered: bool
    piece: Piece | None = None

    def announce(
        self, out: Outflow, connection_id: str, heartbeat_s: float, granted: Mapping[str, Any] = _NOTHING
    ) -> None:
        """Say ``connected``, with what was granted of what the client asked for, then give what has been read."""
        place = self.piece.place if self.piece is not None else self.cursor.place
        out.say(
            "connected",
            connection_id=connection_id,
            epoch=place.epoch,
            offset=place.offset,
            event_id=place.event_id,
            recovered=self.recovered,
            heartbeat=heartbeat_s,
            **granted,
        )
        if self.piece is not None:
            out.begin(self.piece, self.cursor.version)


class Positioning:
    """Finds starts. ``wait_s`` bounds how long a connection waits for the upstream or the log."""

    def __init__(self, log: LogReader, wait_s: float = 10.0) -> None:
        self._log = log
        self._wait_s = wait_s

    async def find(self, login: Login, feed: Feed, resume: Place | None, thread_id: str) -> Start:
        """The start of a connection.

        Args:
            login: Whose log.
            feed: The user's feed; this waits until it is ready.
            resume: What the client has seen; None for what comes from now on; offset 0 without an epoch for all.
            thread_id: The one thread that it wants, or empty.

        Raises:
            UnavailableError: The log could not be reached in time.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                await feed.ready.wait()
                ring = feed.ring
                if resume is None:
                    return Start(Cursor(ring.top, ring.version, thread_id), recovered=False)
                if ring.knows(resume):
                    return Start(Cursor(resume, ring.version, thread_id), recovered=True)
                return await self._from_log(login, feed, resume, thread_id)
        except TimeoutError:
            raise _unreachable() from None

    async def of_run(self, login: Login, feed: Feed, run_id: str, run_log: RunLog) -> Start:
        """The start of a connection that reads one run from its first event on.

        Args:
            login: Whose log.
            feed: The user's feed; this waits until it is ready.
            run_id: The run, which exists. The log may not have anything of it yet, or not any more.
            run_log: What reads it.

        Raises:
            UnavailableError: The log could not be reached in time.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                await feed.ready.wait()
                # Taken before the log is asked: whatever it does not know of the run then comes after this place.
                top, version = feed.ring.top, feed.ring.version
                piece = await _patiently(lambda: run_log.first(login, run_id))
        except TimeoutError:
            raise _unreachable() from None
        if piece is None:
            return Start(Cursor(top, version, run_id=run_id), recovered=True)
        return Start(Cursor(piece.place, version, run_id=run_id), recovered=not piece.reset, piece=piece)

    async def _from_log(self, login: Login, feed: Feed, resume: Place, thread_id: str) -> Start:
        everything = resume.offset == 0 and not resume.epoch
        version = feed.ring.version

        async def read() -> Piece:
            nonlocal version
            version = feed.ring.version
            return await self._log.read(login, None if everything else resume)

        piece = await _patiently(read)
        return Start(Cursor(piece.place, version, thread_id), recovered=not piece.reset, piece=piece)


async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
    """Read, and again while the log cannot be read now. Whoever calls bounds the time."""
    while True:
        try:
            return await read()
        except CarrelError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(0.1)


def _unreachable() -> UnavailableError:
    return UnavailableError(
        "the event log cannot be reached now", advice="connect again shortly, with your position", retry_after_s=1
    )
