"""One attached gateway: the bounded queue of what it is to get, and which of its users are behind.

At the bound nothing is queued any more and nothing is lost: the users concerned are "behind", and the hub reads the log
for them as soon as the gateway takes what is queued. A gateway that stopped reading costs its bound and no more.
"""

from __future__ import annotations

import asyncio
from collections import deque

from services.bridge.models import (
    AppendResult,
    Bye,
    Change,
    Entries,
    GatewayItem,
    ResumePoint,
    Standing,
    StoredEvent,
)

__all__ = ["GatewayLink", "Subscription", "entries_size"]

_OVERHEAD = 64  # bytes an entry weighs in a queue beside its blob
_NOTICE_BYTES = 200  # about what an item without entries takes


class Subscription:
    """One user at one gateway.

    ``cursor`` is the offset of the last entry queued for the gateway. While ``live``, new entries are queued as they
    are committed; otherwise the hub reads them from the log, and ``known_top`` tells it what was committed meanwhile.
    """

    __slots__ = (
        "closed",
        "connections",
        "cursor",
        "epoch",
        "event_id",
        "generation",
        "known_top",
        "link",
        "live",
        "mark",
        "resume",
        "started",
        "user",
    )

    def __init__(
        self, link: GatewayLink, user: str, generation: int, resume: ResumePoint | None, connections: int
    ) -> None:
        self.link = link
        self.user = user
        self.generation = generation
        self.resume = resume
        self.connections = connections
        self.epoch = ""
        self.cursor = 0
        self.event_id = ""
        self.mark = ""
        self.known_top = 0
        self.started = False
        self.live = False
        self.closed = False


class GatewayLink:
    """The bridge's side of one Attach stream.

    Args:
        gateway_id: The gateway's name, for logs and counts only: two streams of one gateway are two links.
        max_bytes: Entries queued at most, in bytes; the last one queued may exceed it.
    """

    def __init__(self, gateway_id: str, max_bytes: int) -> None:
        self.gateway_id = gateway_id
        self.subscriptions: dict[str, Subscription] = {}
        self.behind: deque[Subscription] = deque()
        self._max_bytes = max_bytes
        self._items: deque[tuple[GatewayItem, int]] = deque()
        self._size = 0
        self._closing = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._work = asyncio.Event()
        self._drained.set()

    @property
    def queued_bytes(self) -> int:
        """What is queued now."""
        return self._size

    @property
    def full(self) -> bool:
        """Whether the bound is reached."""
        return self._size >= self._max_bytes

    def put(self, item: GatewayItem, size: int = _NOTICE_BYTES) -> None:
        """Queue an item; callers look at ``full`` before they queue entries."""
        if self._closing:
            return
        self._items.append((item, size))
        self._size += size
        self._filled.set()
        if self._size >= self._max_bytes:
            self._drained.clear()

    def offer(self, sub: Subscription, result: AppendResult, size: int) -> None:
        """New entries of a subscribed user have been committed: queue them, or remember that they are to be read."""
        epoch, first, events, previous = result.epoch, result.first_offset, result.events, result.previous
        last = first + len(events) - 1
        if not sub.live:
            sub.known_top = max(sub.known_top, last)
            return
        follows = epoch == sub.epoch and first == sub.cursor + 1
        # Where others write too, the offset may have been used again: what was seen last must be what is there.
        if not follows or self.full or (previous is not None and previous != sub.mark):
            alone = previous is None or result.mark == sub.mark
            if alone and last <= sub.cursor and epoch == sub.epoch:
                return
            self.fall_behind(sub, last)
            return
        self.put(Entries(sub.user, sub.generation, epoch, first, events), size)
        sub.cursor = last
        sub.event_id, sub.mark = events[-1].event_id, result.mark

    def hint(self, sub: Subscription, change: Change) -> None:
        """Another process says that the user's log has grown. Old news is not looked into: positions are checked."""
        if not sub.live:
            sub.known_top = max(sub.known_top, change.top)
        elif change.epoch != sub.epoch or change.top > sub.cursor or self._differs(sub, change.top, change.mark):
            self.fall_behind(sub, change.top)

    def check(self, sub: Subscription, standing: Standing) -> None:
        """Where the user's log was found to stand: anything but the subscription's own place is looked into."""
        if sub.live and (
            standing.epoch != sub.epoch or standing.top != sub.cursor or self._differs(sub, standing.top, standing.mark)
        ):
            self.fall_behind(sub, standing.top)

    @staticmethod
    def _differs(sub: Subscription, top: int, mark: str) -> bool:
        return top == sub.cursor and bool(sub.mark) and mark != sub.mark

    def fall_behind(self, sub: Subscription, known_top: int) -> None:
        """Have the log read for a subscription that was live."""
        sub.live = False
        sub.known_top = known_top
        self.add_behind(sub)

    def add_behind(self, sub: Subscription) -> None:
        """Have the log read for this subscription."""
        self.behind.append(sub)
        self._work.set()

    async def next_behind(self) -> Subscription:
        """The next subscription to read the log for, once there is room for what is read."""
        while True:
            await self._drained.wait()
            if self.behind:
                return self.behind.popleft()
            self._work.clear()
            await self._work.wait()

    async def room(self) -> None:
        """Wait until less than half of the bound is queued, if the bound was reached."""
        await self._drained.wait()

    async def take(self, max_bytes: int) -> list[GatewayItem]:
        """What is queued, up to ``max_bytes`` or a single entry; waits until there is something.

        Entries that are more are handed out in parts. Empty when the link has ended.
        """
        while not self._items:
            if self._closing:
                return []
            self._filled.clear()
            await self._filled.wait()
        taken: list[GatewayItem] = []
        size = 0
        while self._items and size < max_bytes:
            item, cost = self._items.popleft()
            if size + cost > max_bytes and isinstance(item, Entries):
                item, cost = self._part(item, cost, max_bytes - size, at_least=0 if taken else 1)
                if not item.events:
                    break
            taken.append(item)
            size += cost
        self._size -= size
        if self._size < self._max_bytes / 2:
            self._drained.set()
        return taken

    def _part(self, item: Entries, cost: int, room: int, at_least: int) -> tuple[Entries, int]:
        """The first entries that fit, and what they weigh; the others are put back before everything else."""
        count = size = 0
        for event in item.events:
            weight = entries_size((event,))
            if size + weight > room and count >= at_least:
                break
            size += weight
            count += 1
        if count < len(item.events):
            rest = item._replace(first_offset=item.first_offset + count, events=item.events[count:])
            self._items.appendleft((rest, cost - size))
        return item._replace(events=item.events[:count]), size

    def finish(self, bye: Bye | None = None) -> None:
        """Take no more items; what is queued, ``bye`` last, is still handed out."""
        if bye is not None:
            self.put(bye)
        self._closing = True
        self._filled.set()


def entries_size(events: tuple[StoredEvent, ...]) -> int:
    """What entries weigh in a queue."""
    return sum(len(event.blob) for event in events) + len(events) * _OVERHEAD
