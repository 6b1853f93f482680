"""How much of the log the AG-UI streams of one user go through again: a burst, and then so many entries a second.

Coming back to a stream of AG-UI makes everything before the place again, some 20 µs of the loop for each entry (log
reading, translation, writing). Streams of one user that come back again and again take that from everybody else; so
all streams of one user share one rate, and wait for it between the pieces that they read. Other users do not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from carrel.errors import RateLimitError
from gateway.log_reader import Extent, LogReader, Piece, RunLog
from gateway.login import Login
from gateway.ring import Place

__all__ = ["PacedLog", "ReplayPace"]

# So many seconds' worth at once.
_BURST_S: Final = 10.0
# Who would have to wait longer for the first piece is asked to come back.
_LONGEST_WAIT_S: Final = 5.0
# Of what going through an entry costs, reading it is about half; what is large costs more.
_READ: Final = 0.5
_ENTRY_BYTES: Final = 8192
_FEW: Final = 1024


class ReplayPace:
    """The rate of each user.

    Args:
        per_second: Entries that all streams of one user may go through a second; ten times as many at once.
        clock: The time, in seconds.
    """

    def __init__(self, per_second: float = 4000, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        # When a user's burst is whole again; users whose is have no row.
        self._whole_at: dict[str, float] = {}
        self._sweep_at = _FEW

    def __len__(self) -> int:
        return len(self._whole_at)

    def took(self, user_id: str, entries: float) -> None:
        """The user's streams have gone through so many."""
        now = self._clock()
        self._whole_at[user_id] = max(self._whole_at.get(user_id, now), now) + entries / self._per_second
        if len(self._whole_at) >= self._sweep_at:
            self._whole_at = {user: at for user, at in self._whole_at.items() if at > now}
            self._sweep_at = max(_FEW, 2 * len(self._whole_at))

    def translated(self, user_id: str, entries: int) -> None:
        """One of the user's streams has made something of so many that were read."""
        self.took(user_id, (1 - _READ) * entries)

    def wait_s(self, user_id: str) -> float:
        """How long the user's streams have to wait now."""
        now = self._clock()
        return max(0.0, self._whole_at.get(user_id, now) - now - _BURST_S)

    def check(self, user_id: str) -> None:
        """Whether another stream of the user's may begin.

        Raises:
            RateLimitError: Those that are there have more to wait for than that it should wait, too.
        """
        wait_s = self.wait_s(user_id)
        if wait_s > _LONGEST_WAIT_S:
            raise RateLimitError(
                "this user's streams have read again more than they may",
                advice="keep streams open, and come back to each one time after a cut",
                retry_after_s=wait_s,
                limit="replay_per_second",
                limit_value=int(self._per_second),
            )

    async def turn(self, user_id: str) -> None:
        """Wait until the user's streams may go through more."""
        while wait_s := self.wait_s(user_id):  # noqa: ASYNC110 -- time is what is waited for
            await asyncio.sleep(wait_s)


class PacedLog:
    """A log that is read at its users' pace.

    Args:
        log: Reads pieces.
        run_log: Reads one run's first piece, and knows where runs end.
        pace: The pace.
    """

    def __init__(self, log: LogReader, run_log: RunLog, pace: ReplayPace) -> None:
        self._log = log
        self._run_log = run_log
        self._pace = pace

    async def read(self, login: Login, place: Place | None) -> Piece:
        """See ``LogReader``."""
        await self._pace.turn(login.user_id)
        return self._took(login, await self._log.read(login, place))

    async def first(self, login: Login, run_id: str) -> Piece | None:
        """See ``RunLog``."""
        await self._pace.turn(login.user_id)
        piece = await self._run_log.first(login, run_id)
        return self._took(login, piece) if piece is not None else None

    async def extent(self, login: Login, run_id: str) -> Extent | None:
        """See ``RunLog``."""
        return await self._run_log.extent(login, run_id)

    def _took(self, login: Login, piece: Piece) -> Piece:
        size = sum(len(frame.wire) for frame in piece.frames)
        self._pace.took(login.user_id, _READ * len(piece.frames) + size / _ENTRY_BYTES)
        return piece
