"""The newest entries of one user, encoded, and how far a connection has got with them.

A ring is what the hub holds for a user; each connection is a cursor over it. A cursor that is off the ring (too far
behind, or of another epoch) reads the log until it is back on. Pure state: no tasks, no sockets, no clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.encoding import Frame

__all__ = ["Cursor", "Place", "Ring", "Taken"]


_NONE: Final[deque[Frame]] = deque(maxlen=0)


class Place(NamedTuple):
    """A place in a user's log: everything up to ``offset`` has been read, and the entry there is ``event_id``."""

    epoch: str
    offset: int
    event_id: str = ""


class Ring:
    """At most ``max_events`` consecutive entries and ``max_bytes`` of them; the oldest give way to new ones."""

    __slots__ = ("_base", "_base_id", "_frames", "_max_bytes", "_max_events", "_size", "epoch", "version")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        # The shared empty one while there is nothing, as with most users who are connected: a deque takes 0.7 KB.
        self._frames: deque[Frame] = _NONE
        # Rises whenever what was held may not be what the log says, so that cursors ask the log before they go on.
        self.version = 0
        self.restart(Place("", 0))

    def restart(self, place: Place) -> None:
        """Forget everything and go on after ``place``."""
        self.version += 1
        self.epoch = place.epoch
        self._forget(place.offset, place.event_id)

    def turn(self, epoch: str) -> None:
        """The log goes on under another epoch, with the same entries so far."""
        self.epoch = epoch

    def _forget(self, base: int, base_id: str) -> None:
        self._base, self._base_id = base, base_id
        self._frames = _NONE
        self._size = 0

    @property
    def base(self) -> int:
        """The offset before the oldest entry held."""
        return self._base

    @property
    def top_offset(self) -> int:
        """The offset of the newest entry."""
        return self._base + len(self._frames)

    @property
    def top(self) -> Place:
        """Where the newest entry is."""
        if not self._frames:
            return Place(self.epoch, self._base, self._base_id)
        last = self._frames[-1]
        return Place(self.epoch, last.offset, last.event_id)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def append(self, frame: Frame) -> bool:
        """Take the next entry. One that is there already is ignored; after a hole only what follows it is held.

        Returns:
            Whether it was new.
        """
        frames, offset = self._frames, frame.offset
        due = self._base + len(frames) + 1
        if offset != due:
            if offset < due:
                return False
            self._forget(offset - 1, "")
            frames = self._frames
        if frames is _NONE:
            frames = self._frames = deque()
        frames.append(frame)
        self._size += len(frame.wire)
        while len(frames) > self._max_events or (self._size > self._max_bytes and len(frames) > 1):
            self._drop_oldest()
        return True

    def shrink(self, most_bytes: int) -> None:
        """Give up the oldest until no more than so many bytes are held, the newest in any case."""
        frames = self._frames
        while self._size > most_bytes and len(frames) > 1:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self._frames.popleft()
        self._base, self._base_id = oldest.offset, oldest.event_id
        self._size -= len(oldest.wire)

    def knows(self, place: Place) -> bool:
        """Whether ``place`` is certainly of this log: its entry is held, or was the last to go, and is the same."""
        if place.epoch != self.epoch or not place.event_id:
            return False
        index = place.offset - self._base - 1
        if index == -1:
            return place.event_id == self._base_id
        return 0 <= index < len(self._frames) and self._frames[index].event_id == place.event_id

    def after(self, offset: int, max_events: int, max_bytes: int) -> list[Frame] | None:
        """Entries after ``offset``, at least one if there is any; None when the next one is not held."""
        frames = self._frames
        start = offset - self._base
        if not 0 <= start <= len(frames):
            return None
        taken: list[Frame] = []
        size = 0
        # By index from here on: near its ends, where readers are, a deque finds one as fast as a list does.
        for index in range(start, min(len(frames), start + max_events)):
            frame = frames[index]
            size += len(frame.wire)
            if size > max_bytes and taken:
                break
            taken.append(frame)
        return taken


class Taken(enum.Enum):
    """Why a cursor got no frames from the ring: it is at the top; off the ring; the log goes on under another epoch."""

    NOTHING_NEW = enum.auto()
    READ_LOG = enum.auto()
    NEW_EPOCH = enum.auto()


@dataclass(slots=True)
class Cursor:
    """How far one connection has got. ``thread_id`` or ``run_id`` narrow it: entries of others are passed over.

    ``version`` is the ring's when the place was last known to be one of the log. ``passed_over`` is where the last such
    entry is, until the connection has been told.
    """

    place: Place
    version: int
    thread_id: str = ""
    passed_over: Place | None = None
    run_id: str = ""

    def take(self, ring: Ring, max_events: int, max_bytes: int) -> list[Frame | Place] | Taken:
        """What comes next from the ring, moving the cursor past it (``advance``), or why there is nothing."""
        if self.version != ring.version:
            return Taken.READ_LOG
        if self.place.epoch != ring.epoch:
            return Taken.NEW_EPOCH
        offset = self.place.offset
        frames = ring.after(offset, max_events, max_bytes)
        if frames:
            return self.advance(frames)
        # Beyond the ring's top: the log was read ahead of the live stream, which will catch up.
        return Taken.READ_LOG if offset < ring.base else Taken.NOTHING_NEW

    def off(self, ring: Ring) -> bool:
        """Whether only the log can tell what comes next. Moves nothing."""
        return self.version != ring.version or self.place.offset < ring.base

    def advance(self, frames: Sequence[Frame]) -> list[Frame | Place]:
        """Move past frames that follow the cursor, and return what the connection is to get.

        That is every frame; or, under a filter, those that it lets pass, each with the place before it when others
        were passed over in between, so that offsets remain explainable. May be empty then.
        """
        last = frames[-1]
        self.place = Place(self.place.epoch, last.offset, last.event_id)
        if not self.thread_id and not self.run_id:
            return list(frames)
        wanted: list[Frame | Place] = []
        for frame in frames:
            if not self._wants(frame):
                self.passed_over = Place(self.place.epoch, frame.offset, frame.event_id)
                continue
            if self.passed_over is not None:
                wanted.append(self.passed_over)
                self.passed_over = None
            wanted.append(frame)
        return wanted

    def _wants(self, frame: Frame) -> bool:
        return self.thread_id in {"", frame.thread_id} and self.run_id in {"", frame.run_id}

    def move(self, place: Place, version: int) -> None:
        """Go on after another place, which is one of the log as the ring of this version knows it."""
        self.place, self.version = place, version
        self.passed_over = None
