"""Who of this gateway's users is connected, and the newest entries of each: one feed per user, shared by connections.

The upstream fills feeds; connections read them, each at its own pace; filling never waits for reading. Not here: the
log itself, and anything that a restart would lose.
"""

from __future__ import annotations

from asyncio import Future, get_running_loop, shield
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from carrel.errors import CarrelError
from gateway.close_codes import CloseCode
from gateway.encoding import EntryLike, Frame, encode_entry, event_batch, packed_batch
from gateway.held import Taken
from gateway.jitter import ALONE_MS, retry_ms, window_ms
from gateway.login import Login
from gateway.ring import Place, Ring
from servicekit.logs import hash_user
from servicekit.telemetry.names import EVENTS
from servicekit.telemetry.tracing import NO_TRACING, Attribute, Kind, Tracing

__all__ = ["Batch", "Feed", "Gate", "Hub", "Listener"]

# Batches of more than so many events are worth compressing.
_MOST_PLAIN: Final = 3
# What a ring keeps when all of them together hold too much.
_LEAST_BYTES: Final = 64 * 1024


class Listener(Protocol):
    """A connection, as the hub knows it. Both methods only leave word: neither waits, neither raises.

    ``login`` is the latest that it has proved.
    """

    @property
    def login(self) -> Login: ...

    def wake(self) -> None:
        """There may be something new in the feed."""

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        """Close, and say why, and when to come back."""


class Batch(NamedTuple):
    """A frame of several entries, and how many bytes its compression has saved."""

    wire: bytes
    saved: int


class Gate:
    """An event that is set once and stays so. In place of ``asyncio.Event``, which takes 0.8 KB for each user."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._set

    def set(self) -> None:
        """Open it."""
        self._set = True
        if self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None

    async def wait(self) -> None:
        """Wait until it is open."""
        if not self._set:
            if self._waiting is None:
                self._waiting = get_running_loop().create_future()
            await shield(self._waiting)


class Budget:
    """What the rings of all users may hold together; one that would take more keeps its newest events only."""

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Feed:
    """One user's newest entries, and who listens.

    ``ready`` is set once the upstream has told where the log stands. ``login`` is the longest-lived one among those
    who joined: subscriptions are asked for in its name.
    """

    __slots__ = ("_batches", "_budget", "_counted", "listeners", "login", "ready", "ring", "tracing", "user_id")

    def __init__(
        self,
        login: Login,
        max_events: int,
        max_bytes: int,
        budget: Budget | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.tracing = tracing
        self._budget = budget or Budget(max_bytes)
        self._counted = 0
        self.user_id = login.user_id
        self.login = login
        self.ring = Ring(max_events, max_bytes)
        self.ready = Gate()
        self._batches: dict[tuple[int, int, str, bool], Batch] | None = None
        self.listeners: set[Listener] = set()

    def renew(self, login: Login) -> None:
        """Somebody of this user has proved their login anew."""
        if login.expires_at > self.login.expires_at:
            self.login = login

    def sign_out(self, name: str, error: CarrelError) -> int:
        """Close the connections of one login for good, and ask in the name of another's from now on; how many."""
        ended = [listener for listener in self.listeners if listener.login.name == name]
        left = [listener.login for listener in self.listeners if listener.login.name != name]
        if self.login.name == name:
            # With nobody left: whoever joins before the last one has gone is the better one to ask as.
            self.login = max(left, key=lambda login: login.expires_at, default=replace(self.login, expires_at=0.0))
        for listener in ended:
            listener.end(CloseCode.BAD_TOKEN, error)
        return len(ended)

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
        self._count()
        self.wake()

    def reset(self, place: Place) -> None:
        """The log goes on after ``place``, which may be where the feed is, under another epoch."""
        top = self.ring.top
        if (place.offset, place.event_id) == (top.offset, top.event_id):
            self.ring.turn(place.epoch)
        else:
            self.ring.restart(place)
            self._count()
        self.ready.set()
        self.wake()

    def _count(self) -> None:
        """Keep to the budget. Whoever reads what is given up here reads it from the log."""
        ring, budget = self.ring, self._budget
        budget.used += ring.size - self._counted
        if budget.used > budget.most and ring.size > _LEAST_BYTES:
            before = ring.size
            ring.shrink(_LEAST_BYTES)
            budget.used -= before - ring.size
        self._counted = ring.size

    def close(self) -> None:
        """Nobody listens any more."""
        self._budget.used -= self._counted
        self._counted = 0

    def batch(self, frames: Sequence[Frame], *, compress: bool) -> Batch:
        """Several entries as one frame; connections that are due the same ones at once share the work and its bytes."""
        first, last = frames[0], frames[-1]
        if len(self.listeners) < 2 or last.offset - first.offset >= len(frames):
            # Nobody to share with, or a filter's: only without holes do the ends say what is in between.
            return _batch(frames, compress=compress)
        if self._batches is None:
            self._batches = {}
            # Those that are due together are served in one turn of the loop; idle users hold nothing.
            get_running_loop().call_soon(self._forget_batches)
        key = (first.offset, last.offset, last.event_id, compress)
        made = self._batches.get(key)
        if made is None:
            made = self._batches[key] = _batch(frames, compress=compress)
        return made

    def _forget_batches(self) -> None:
        self._batches = None

    def delivered(self, traces: Sequence[tuple[str, int]], began_ns: int) -> None:
        """Entries of kept traces, each with when it came here, have been written to a connection that began then."""
        told: dict[str, Attribute] = {EVENTS: len(traces), "carrel.user": hash_user(self.user_id)}
        # What came before the connection did has not waited for it.
        since = max(began_ns, min(at for _, at in traces))
        self.tracing.batch("deliver", (text for text, _ in traces), told, kind=Kind.CONSUMER, since_ns=since).end()

    def wake(self) -> None:
        """Let every connection look."""
        for listener in self.listeners:
            listener.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None, within_ms: int = ALONE_MS) -> None:
        """Close every connection of the user; they are to come back within that time."""
        for listener in list(self.listeners):
            listener.end(code, error, retry_ms(within_ms))


def _batch(frames: Sequence[Frame], *, compress: bool) -> Batch:
    packed = packed_batch(frames) if compress and len(frames) > _MOST_PLAIN else None
    if packed is None:
        return Batch(event_batch(frames), 0)
    return Batch(packed, sum(len(frame.wire) - frame.head for frame in frames) - len(packed))


class Hub:
    """All feeds. ``on_change(user_id)`` is told when a user's first connection comes or the last one goes."""

    def __init__(
        self,
        max_events: int = 1000,
        max_bytes: int = 4 << 20,
        all_bytes: int = 1 << 30,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._tracing = tracing
        self._budget = Budget(all_bytes)
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._feeds: dict[str, Feed] = {}
        self.on_change: Callable[[str], None] = lambda user_id: None

    def join(self, login: Login, listener: Listener) -> Taken[Feed]:
        """Listen to the login's user until that is given back."""
        user_id = login.user_id
        feed = self._feeds.get(user_id)
        if feed is None:
            feed = self._feeds[user_id] = Feed(login, self._max_events, self._max_bytes, self._budget, self._tracing)
            self.on_change(user_id)
        feed.renew(login)
        feed.listeners.add(listener)
        return Taken(feed, self._leave, feed, listener)

    def _leave(self, feed: Feed, listener: Listener) -> None:
        feed.listeners.discard(listener)
        if not feed.listeners:
            del self._feeds[feed.user_id]
            feed.close()
            self.on_change(feed.user_id)

    @property
    def ring_bytes(self) -> int:
        """Bytes of events that all feeds hold."""
        return self._budget.used

    def feed(self, user_id: str) -> Feed | None:
        """The user's feed, while somebody listens."""
        return self._feeds.get(user_id)

    def users(self) -> list[str]:
        """Users with a feed."""
        return list(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def end_all(self, code: CloseCode, error: CarrelError | None = None) -> None:
        """Close every connection. They come back over a time that grows with their number, as after a drain."""
        feeds = list(self._feeds.values())
        within_ms = window_ms(sum(len(feed.listeners) for feed in feeds))
        for feed in feeds:
            feed.end(code, error, within_ms)
