"""``FairSlots``: places under one bound, handed out in turn among the users who wait for one.

Counts only: it knows neither workers nor instances. All of it runs in one loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from carrel.errors import WorkersBusyError

__all__ = ["FairSlots"]

_RETRY_S: Final = 1.0


class FairSlots:
    """At most ``capacity`` places, ``user_capacity`` of one user; those who wait are bounded in all and per user.

    A free place goes to the users in turn, each user's own in the order they came: whoever asks for a hundred delays
    another's first by one place, not by a hundred. A user at their own bound is passed over.
    """

    def __init__(
        self,
        *,
        capacity: int,
        user_capacity: int,
        max_waiting: int,
        max_waiting_per_user: int,
        wait_s: float,
    ) -> None:
        self.capacity = capacity
        self._user_capacity = user_capacity
        self._max_waiting = max_waiting
        self._max_waiting_per_user = max_waiting_per_user
        self._wait_s = wait_s
        self._used: Counter[str] = Counter()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._turn: deque[str] = deque()  # users who wait, the next first
        self.taken = 0
        self.waiting = 0

    def take(self, user_id: str) -> None:
        """Take a place at once.

        Raises:
            WorkersBusyError: As many are taken as allowed, in all or by the user.
        """
        if self.taken >= self.capacity:
            raise _busy(f"all {self.capacity} workers are busy", "max_workers", self.capacity, self.taken)
        use = self._used[user_id]
        if use >= self._user_capacity:
            problem = f"all {self._user_capacity} workers that one user may have are busy"
            raise _busy(problem, "max_workers_per_user", self._user_capacity, use)
        self._taken(user_id)

    async def wait(self, user_id: str) -> None:
        """Take a place, in turn. Cancelling it leaves the queue.

        Raises:
            WorkersBusyError: Too many wait already, in all or of the user, or none came free in time.
        """
        if self.taken < self.capacity and self._used[user_id] < self._user_capacity and user_id not in self._queues:
            self._taken(user_id)
            return
        place = self._enqueue(user_id)
        try:
            async with asyncio.timeout(self._wait_s):
                await place
        except TimeoutError:
            self._leave(user_id, place)
            problem = f"no worker came free within {self._wait_s:g} s"
            raise _busy(problem, "max_workers", self.capacity, self.taken) from None
        except BaseException:
            self._leave(user_id, place)
            raise

    def give(self, user_id: str) -> None:
        """Give a place back."""
        self.taken -= 1
        self._used[user_id] -= 1
        if not self._used[user_id]:
            del self._used[user_id]
        self._hand_out()

    def _taken(self, user_id: str) -> None:
        self.taken += 1
        self._used[user_id] += 1

    def _enqueue(self, user_id: str) -> asyncio.Future[None]:
        if self.waiting >= self._max_waiting:
            problem = f"{self.waiting} runs wait for a worker already"
            raise _busy(problem, "max_waiting", self._max_waiting, self.waiting)
        queue = self._queues.get(user_id)
        if queue is not None and len(queue) >= self._max_waiting_per_user:
            problem = f"{len(queue)} runs of this user wait for a worker already"
            raise _busy(problem, "max_waiting_per_user", self._max_waiting_per_user, len(queue))
        if queue is None:
            queue = self._queues[user_id] = deque()
            self._turn.append(user_id)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        self.waiting += 1
        return place

    def _leave(self, user_id: str, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            # It was handed over in the same moment in which nobody wanted it any more.
            self.give(user_id)
            return
        queue = self._queues.get(user_id)
        if queue is not None and place in queue:
            queue.remove(place)
            self.waiting -= 1
            self._forget_if_empty(user_id)

    def _hand_out(self) -> None:
        while self.taken < self.capacity:
            user_id = next((user for user in self._turn if self._used[user] < self._user_capacity), None)
            if user_id is None:
                return
            self._turn.remove(user_id)
            self._turn.append(user_id)
            place = self._queues[user_id].popleft()
            self.waiting -= 1
            self._forget_if_empty(user_id)
            if not place.done():
                self._taken(user_id)
                place.set_result(None)

    def _forget_if_empty(self, user_id: str) -> None:
        if not self._queues[user_id]:
            del self._queues[user_id]
            self._turn.remove(user_id)


def _busy(problem: str, limit: str, value: int, use: int) -> WorkersBusyError:
    return WorkersBusyError(
        problem,
        advice=f"try again shortly, or raise {limit}",
        retry_after_s=_RETRY_S,
        limit=limit,
        limit_value=value,
        use=use,
    )
