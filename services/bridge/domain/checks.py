"""Looking at where listened users' logs stand, so that lost news of a shared log costs time and no event.

Often while a run of the user is under way or the log has just grown, slowly otherwise. What follows from a standing is
the hub's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from carrel.errors import CarrelError
from services.bridge.models import Standing
from services.bridge.store import ChangeFeed

__all__ = ["CheckOptions", "Checks"]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Seconds between two looks: right after a change, at most while a run is under way, and otherwise."""

    first_s: float = 1.0
    active_s: float = 5.0
    quiet_s: float = 30.0
    at_once: int = 1000


class _Watched:
    __slots__ = ("due", "pause", "standing")

    def __init__(self, due: float, pause: float) -> None:
        self.due = due
        self.pause = pause
        self.standing: Standing | None = None


class Checks:
    """Run ``run`` as a task; the other methods may be called at any time.

    Args:
        feed: Whom to ask.
        stands: Told each user's standing, and whether it differs from the one before.
        failed: Told when it could not be asked.
        options: How often.
    """

    def __init__(
        self,
        feed: ChangeFeed,
        stands: Callable[[str, Standing, bool], None],
        failed: Callable[[CarrelError], None],
        options: CheckOptions | None = None,
    ) -> None:
        self._feed = feed
        self._stands = stands
        self._failed = failed
        self._options = options or CheckOptions()
        self._watched: dict[str, _Watched] = {}
        self._heap: list[tuple[float, str]] = []
        self._woken = asyncio.Event()

    def add(self, user: str) -> None:
        """Look at this user's log from now on."""
        pause = self._options.first_s
        self._watched[user] = watched = _Watched(self._now() + pause, pause)
        self._push(user, watched)

    def remove(self, user: str) -> None:
        """Look no more."""
        self._watched.pop(user, None)

    def touch(self, user: str) -> None:
        """The user's log has grown: look again soon, for what may follow."""
        watched = self._watched.get(user)
        if watched is not None and watched.pause > self._options.first_s:
            watched.pause = self._options.first_s
            self._bring(user, watched, self._now() + watched.pause)

    def soon(self, users: Iterable[str] | None = None) -> None:
        """Look at these users' logs at once, or at all."""
        now = self._now()
        for user in list(self._watched) if users is None else users:
            if (watched := self._watched.get(user)) is not None:
                watched.pause = self._options.first_s
                self._bring(user, watched, now)

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            users = await self._due()
            try:
                standings = await self._feed.standings(users)
            except CarrelError as error:
                self._failed(error)
                for user in users:
                    self._again(user, self._options.first_s)
                await asyncio.sleep(self._options.first_s)
                continue
            for user, standing in zip(users, standings, strict=True):
                self._looked(user, standing)

    def _looked(self, user: str, standing: Standing) -> None:
        watched = self._watched.get(user)
        if watched is None:
            return
        changed = watched.standing != standing
        watched.standing = standing
        options = self._options
        if changed:
            pause = options.first_s
        else:
            pause = min(watched.pause * 1.5, options.active_s) if standing.active else options.quiet_s
        self._again(user, pause)
        self._stands(user, standing, changed)

    def _again(self, user: str, pause: float) -> None:
        watched = self._watched.get(user)
        if watched is not None:
            watched.pause = pause
            watched.due = self._now() + pause
            self._push(user, watched)

    def _bring(self, user: str, watched: _Watched, due: float) -> None:
        if due < watched.due:
            watched.due = due
            self._push(user, watched)

    def _push(self, user: str, watched: _Watched) -> None:
        if not self._heap or watched.due < self._heap[0][0]:
            self._woken.set()
        heapq.heappush(self._heap, (watched.due, user))
        if len(self._heap) > 1000 + 4 * len(self._watched):
            self._heap = [(entry.due, name) for name, entry in self._watched.items()]
            heapq.heapify(self._heap)

    async def _due(self) -> list[str]:
        """Users whose time has come; waits until there is one."""
        users: list[str] = []
        while True:
            now, heap = self._now(), self._heap
            while heap and heap[0][0] <= now and len(users) < self._options.at_once:
                due, user = heapq.heappop(heap)
                watched = self._watched.get(user)
                if watched is not None and watched.due == due:
                    watched.due = now + 3600.0  # until it is put back
                    users.append(user)
            if users:
                return users
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(heap[0][0] - now if heap else None):
                    await self._woken.wait()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
