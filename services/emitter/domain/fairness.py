"""Whose turn it is: per-user queues served in turns of a bounded number of events, so that a flood delays nobody else.

Deficit round robin by events, and a window on what is sent but not acknowledged: whatever is beyond it waits here, in
its own user's queue, and not in the bridge among everybody's. Knows nothing of producers' numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from services.emitter.models import Batch, Limits, UserQueue

__all__ = ["FairQueue"]


class FairQueue:
    """The batches of all users until the log has acknowledged them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._users: dict[str, UserQueue] = {}
        self._ring: deque[UserQueue] = deque()
        self._flying_events = 0
        self.events = 0
        self.bytes = 0
        self.users_created = 0

    @property
    def users(self) -> Iterable[UserQueue]:
        """Every user that is known now."""
        return self._users.values()

    @property
    def users_active(self) -> int:
        """Users with something queued or unacknowledged."""
        return sum(1 for user in self._users.values() if user.events)

    def user(self, user_id: str, now: float) -> UserQueue:
        """The user's queue, made when it is not there."""
        user = self._users.get(user_id)
        if user is None:
            user = self._users[user_id] = UserQueue(user_id)
            self.users_created += 1
        user.touched = now
        return user

    def forget_user(self, user: UserQueue) -> None:
        """Drop the (empty) queue of a user that has been idle."""
        del self._users[user.user_id]

    def full_for(self, user: UserQueue, count: int, size: int) -> str:
        """The name of the bound that a batch of this size would break; empty when there is room.

        An item is always taken by an empty queue, whatever its size, or it could never be sent.
        """
        if self.bytes + size > self._limits.total_bytes and self.bytes:
            return "total_bytes"
        if user.events:
            if user.events + count > self._limits.user_events:
                return "user_events"
            if user.bytes + size > self._limits.user_bytes:
                return "user_bytes"
        return ""

    def push(self, batch: Batch) -> None:
        """Queue a batch."""
        user = batch.producer.user
        count = batch.count
        user.queued.append(batch)
        user.events += count
        user.bytes += batch.size
        self.events += count
        self.bytes += batch.size
        self._list(user)

    def take(self, max_items: int, max_bytes: int) -> list[Batch]:
        """The batches of the next message, users in turn; they fly from now on."""
        taken: list[Batch] = []
        total = 0
        ring, window = self._ring, self._limits.total_window
        while ring and len(taken) < max_items and total < max_bytes and self._flying_events < window:
            user = ring.popleft()
            user.listed = False
            turn = 0
            while user.queued and len(taken) < max_items and total < max_bytes:
                batch = user.queued[0]
                if not batch.dropped:
                    turn += batch.count
                    if turn > self._limits.turn_events and turn != batch.count:
                        break
                    taken.append(batch)
                    total += batch.size
                    self._fly(user, batch)
                user.queued.popleft()
            self._list(user)
        return taken

    def release(self, batch: Batch) -> None:
        """Hold a batch no longer: it is in the log, or given up."""
        user, count = batch.producer.user, batch.count
        batch.span.end()
        user.events -= count
        user.bytes -= batch.size
        self.events -= count
        self.bytes -= batch.size
        if batch in user.flying:
            del user.flying[batch]
            user.flying_events -= count
            self._flying_events -= count
            self._list(user)
        else:
            # It lies somewhere in the queue; take() steps over it.
            batch.dropped = True
            batch.payload = None

    def is_flying(self, batch: Batch) -> bool:
        """Whether the batch has been sent on the present connection."""
        return batch in batch.producer.user.flying

    def rewind(self) -> None:
        """Nothing that flies is known to have arrived: queue it again, before everything else of its user."""
        for user in self._users.values():
            if user.flying:
                user.queued.extendleft(reversed(user.flying))
                user.flying.clear()
                user.flying_events = 0
                self._list(user)
        self._flying_events = 0

    def oldest(self) -> float | None:
        """When the batch was received that has been held longest; None when nothing is held."""
        heads = []
        for user in self._users.values():
            if user.events:
                head = next(iter(user.flying), None) or next((b for b in user.queued if not b.dropped), None)
                if head is not None:
                    heads.append(head.received)
        return min(heads, default=None)

    def _fly(self, user: UserQueue, batch: Batch) -> None:
        count = batch.count
        user.flying[batch] = None
        user.flying_events += count
        self._flying_events += count

    def _list(self, user: UserQueue) -> None:
        if not user.listed and user.queued and user.flying_events < self._limits.user_window:
            user.listed = True
            self._ring.append(user)
