"""Who of this gateway's users is connected, and the newest entries of each: one feed per user, shared by connections.

The upstream fills feeds; connections read them, each at its own pace; filling never waits for reading. Not here: the
log itself, and anything that a restart would lose.
"""

from __future__ import annotations

from asyncio import Event
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from carrel.errors import CarrelError
from gateway.close_codes import CloseCode
from gateway.encoding import EntryLike, encode_entry
from gateway.login import Login
from gateway.ring import Place, Ring

__all__ = ["Feed", "Hub", "Listener"]


class Listener(Protocol):
    """A connection, as the hub knows it. Both methods only leave word: neither waits, neither raises."""

    def wake(self) -> None:
        """There may be something new in the feed."""

    def end(self, code: CloseCode, error: CarrelError | None = None) -> None:
        """Close, and say why."""


class Feed:
    """One user's newest entries, and who listens.

    ``ready`` is set while the upstream has told where the log stands. ``login`` is the longest-lived one among those
    who joined: subscriptions are asked for in its name.
    """

    def __init__(self, login: Login, max_events: int, max_bytes: int) -> None:
        self.user_id = login.user_id
        self.login = login
        self.ring = Ring(max_events, max_bytes)
        self.ready = Event()
        self.listeners: set[Listener] = set()

    def renew(self, login: Login) -> None:
        """Somebody of this user has proved their login anew."""
        if login.expires_at > self.login.expires_at:
            self.login = login

    def begin(self, top: Place) -> None:
        """A subscription has begun, and the log stands at ``top``."""
        if not self.ready.is_set():
            self.ring.restart(top)
            self.ready.set()

    def extend(self, epoch: str, entries: Sequence[EntryLike]) -> None:
        """New entries, consecutive. Encoded here, once for all connections."""
        if not entries:
            return
        ring = self.ring
        if epoch != ring.epoch:
            ring.restart(Place(epoch, entries[0].offset - 1))
        user_id, top = self.user_id, ring.top_offset
        for entry in entries:
            if entry.offset > top:
                ring.append(encode_entry(user_id, entry))
        self.wake()

    def reset(self, place: Place) -> None:
        """The log goes on after ``place``, which may be where the feed is, under another epoch."""
        top = self.ring.top
        if (place.offset, place.event_id) == (top.offset, top.event_id):
            self.ring.turn(place.epoch)
        else:
            self.ring.restart(place)
        self.ready.set()
        self.wake()

    def wake(self) -> None:
        """Let every connection look."""
        for listener in self.listeners:
            listener.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None) -> None:
        """Close every connection of the user."""
        for listener in list(self.listeners):
            listener.end(code, error)


class Hub:
    """All feeds. ``on_change(user_id)`` is told when a user's first connection comes or the last one goes."""

    def __init__(self, max_events: int = 1000, max_bytes: int = 4 << 20) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._feeds: dict[str, Feed] = {}
        self.on_change: Callable[[str], None] = lambda user_id: None

    @contextmanager
    def join(self, login: Login, listener: Listener) -> Iterator[Feed]:
        """Listen to the login's user until the block ends."""
        user_id = login.user_id
        feed = self._feeds.get(user_id)
        if feed is None:
            feed = self._feeds[user_id] = Feed(login, self._max_events, self._max_bytes)
            self.on_change(user_id)
        feed.renew(login)
        feed.listeners.add(listener)
        try:
            yield feed
        finally:
            feed.listeners.discard(listener)
            if not feed.listeners:
                del self._feeds[user_id]
                self.on_change(user_id)

    def feed(self, user_id: str) -> Feed | None:
        """The user's feed, while somebody listens."""
        return self._feeds.get(user_id)

    def users(self) -> list[str]:
        """Users with a feed."""
        return list(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def end_all(self, code: CloseCode, error: CarrelError | None = None) -> None:
        """Close every connection."""
        for feed in list(self._feeds.values()):
            feed.end(code, error)
