"""Who gets which entries: subscriptions of gateways, fan-out of what is committed, catching up from the log.

Every subscription gets each entry after its position once and in order, whether it comes live or is read: an entry is
queued live only if it follows the cursor, and everything else makes the subscription read the log until it is level
again. Nothing is kept here that a crash could lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from carrel.errors import CarrelError, LimitExceededError
from servicekit.tasks import FailureHandler, TaskOwner, end_service
from services.bridge.domain.chain import break_of, following, mark_after
from services.bridge.domain.checks import CheckOptions, Checks
from services.bridge.domain.contract import bridge_contract
from services.bridge.domain.links import GatewayLink, Subscription, entries_size
from services.bridge.models import (
    ONE_USER,
    Append,
    AppendResult,
    Bye,
    Change,
    Entries,
    Refused,
    Reset,
    ResetReason,
    ResumePoint,
    Standing,
    StoredEvent,
    Subscribed,
)
from services.bridge.store import EventLog

__all__ = ["Hub", "HubOptions"]


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Bounds of the fan-out.

    ``queue_bytes`` are queued for one gateway at most. ``readers`` subscriptions of one gateway catch up at once, each
    ``page_entries`` or ``page_bytes`` at a time. ``retry_s`` is the pause after the log could not be read.
    ``checks`` says how often positions in a shared log are looked at.
    """

    queue_bytes: int = 8 << 20
    readers: int = 4
    page_entries: int = 200
    page_bytes: int = 256 << 10
    retry_s: float = 0.5
    max_subscriptions: int = 50_000
    checks: CheckOptions = field(default_factory=CheckOptions)


class Hub:
    """All gateways attached to this process.

    Args:
        log: Where missed entries are read.
        options: Bounds.
        store_failed: Told when the log could not be read.
        on_failure: Told when a task of the hub fails by a fault of ours.
    """

    def __init__(
        self,
        log: EventLog,
        options: HubOptions | None = None,
        *,
        store_failed: Callable[[CarrelError], None] = lambda error: None,
        on_failure: FailureHandler = end_service,
    ) -> None:
        self._log = log
        self._options = options or HubOptions()
        self._store_failed = store_failed
        self._on_failure = on_failure
        self._links: dict[GatewayLink, TaskOwner] = {}
        self._by_user: dict[str, dict[GatewayLink, Subscription]] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._bye: Bye | None = None
        self._feed = log.changes
        self._checks: Checks | None = None
        if self._feed is not None:
            self._checks = Checks(self._feed, self._stands, store_failed, self._options.checks)
            self._feed.follow(self._told, self._checks.soon)
        self.contract = bridge_contract()

    # Gateways.

    def attach(self, gateway_id: str) -> GatewayLink:
        """A link for a new Attach stream; ``detach`` it when the stream ends."""
        link = GatewayLink(gateway_id, self._options.queue_bytes)
        tasks = self._links[link] = TaskOwner(self._on_failure)
        for n in range(self._options.readers):
            _ = tasks.start(self._catch_up(link), f"catch-up {n} of gateway {gateway_id}")
        if self._bye is not None:
            link.finish(self._bye)
        return link

    async def detach(self, link: GatewayLink) -> None:
        """End the link and its subscriptions. Idempotent."""
        link.finish()
        tasks = self._links.pop(link, None)
        for subscription in list(link.subscriptions.values()):
            self._remove(subscription)
        if tasks is not None:
            await tasks.aclose()

    def say_bye(self, bye: Bye) -> None:
        """End every link, and each that comes later, after what is queued."""
        self._bye = bye
        for link in self._links:
            link.finish(bye)
        for waiting in self._watchers.values():
            for event in waiting:
                event.set()

    @property
    def ending(self) -> bool:
        """Whether ``say_bye`` was called: whoever waits for entries should stop."""
        return self._bye is not None

    # Subscriptions.

    def subscribe(
        self, link: GatewayLink, user: str, generation: int, resume: ResumePoint | None, connections: int = 0
    ) -> None:
        """Begin, or replace an older generation of, the user's subscription at this link.

        ``Subscribed`` comes first, then (if ``resume`` is unusable) ``Reset``, then entries. An older or the same
        generation is ignored.
        """
        known = link.subscriptions.get(user)
        if known is not None:
            if generation <= known.generation:
                return
            self._remove(known)
        elif len(link.subscriptions) >= self._options.max_subscriptions:
            self.refuse(link, user, generation, _too_many(self._options.max_subscriptions))
            return
        subscription = Subscription(link, user, generation, resume, connections)
        self.contract.check_input(subscription)
        link.subscriptions[user] = subscription
        self._listen(user)
        self._by_user.setdefault(user, {})[link] = subscription
        link.add_behind(subscription)

    def unsubscribe(self, link: GatewayLink, user: str, generation: int) -> None:
        """End the user's subscription at this link, if it is of this generation."""
        subscription = link.subscriptions.get(user)
        if subscription is not None and subscription.generation == generation:
            self._remove(subscription)

    def refuse(self, link: GatewayLink, user: str, generation: int, error: CarrelError) -> None:
        """Tell the gateway that this subscription does not exist."""
        link.put(Refused(user, generation, error))

    def _remove(self, subscription: Subscription) -> None:
        subscription.closed = True
        subscription.live = False
        link, user = subscription.link, subscription.user
        if link.subscriptions.get(user) is subscription:
            del link.subscriptions[user]
        links = self._by_user.get(user)
        if links is not None and links.get(link) is subscription:
            del links[link]
            if not links:
                del self._by_user[user]
                self._unlisten(user)

    # Fan-out.

    def committed(self, appends: Sequence[Append], results: Sequence[AppendResult]) -> None:
        """These have become durable; call in the order of the commits."""
        by_user, watchers = self._by_user, self._watchers
        for append, result in zip(appends, results, strict=True):
            events = result.events
            if not events:
                continue
            links = by_user.get(append.user)
            if links:
                size = entries_size(events)
                for link, subscription in links.items():
                    link.offer(subscription, result, size)
                if self._checks is not None:
                    self._checks.touch(append.user)
            if watchers and (waiting := watchers.get(append.user)):
                for event in waiting:
                    event.set()

    @contextmanager
    def watch(self, user: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the user's log has grown."""
        event = asyncio.Event()
        self._listen(user)
        self._watchers.setdefault(user, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._watchers[user]
            waiting.discard(event)
            if not waiting:
                del self._watchers[user]
                self._unlisten(user)

    # A log that others write to as well.

    async def check(self) -> None:
        """Look after positions in a shared log, for ever; ends at once when the log is this process's alone."""
        if self._checks is not None:
            await self._checks.run()

    def recheck(self, users: Iterable[str]) -> None:
        """What became of these users' appends is not known: see where their logs stand."""
        if self._checks is not None:
            self._checks.soon(users)

    def _listen(self, user: str) -> None:
        if self._feed is not None and self._checks is not None and not self._wanted(user):
            self._feed.listen(user)
            self._checks.add(user)

    def _unlisten(self, user: str) -> None:
        if self._feed is not None and self._checks is not None and not self._wanted(user):
            self._feed.unlisten(user)
            self._checks.remove(user)

    def _wanted(self, user: str) -> bool:
        return user in self._by_user or user in self._watchers

    def _told(self, change: Change) -> None:
        for link, subscription in self._by_user.get(change.user, {}).items():
            link.hint(subscription, change)
        self._wake(change.user)
        if self._checks is not None:
            self._checks.touch(change.user)

    def _stands(self, user: str, standing: Standing, changed: bool) -> None:
        for link, subscription in self._by_user.get(user, {}).items():
            link.check(subscription, standing)
        if changed:
            self._wake(user)

    def _wake(self, user: str) -> None:
        for event in self._watchers.get(user, ()):
            event.set()

    # Counts.

    @property
    def gateways(self) -> int:
        """Gateways attached now."""
        return len(self._links)

    @property
    def subscriptions(self) -> int:
        """Subscriptions now."""
        return sum(len(link.subscriptions) for link in self._links)

    @property
    def users_behind(self) -> int:
        """Subscriptions that are served from the log."""
        return sum(not s.live for link in self._links for s in link.subscriptions.values())

    def connections(self, user: str | None = None) -> int:
        """Connections of one user, or of all, on the gateways attached here."""
        if user is not None:
            return sum(s.connections for s in self._by_user.get(user, {}).values())
        return sum(s.connections for link in self._links for s in link.subscriptions.values())

    # Catching up.

    async def _catch_up(self, link: GatewayLink) -> None:
        while True:
            subscription = await link.next_behind()
            if subscription.closed:
                continue
            before = (subscription.started, subscription.epoch, subscription.cursor)
            try:
                level = await (self._advance(subscription) if subscription.started else self._begin(subscription))
            except CarrelError as error:
                self._store_failed(error)
                if not subscription.started:
                    self._remove(subscription)
                    self.refuse(link, subscription.user, subscription.generation, error)
                    continue
                if error.details.get("scope") == ONE_USER:
                    # The others' readers are not held up by what only this one has to wait for.
                    self._later(subscription)
                    continue
                await asyncio.sleep(self._options.retry_s)
                level = False
            if level or subscription.closed:
                continue
            moved = before != (subscription.started, subscription.epoch, subscription.cursor)
            if moved or subscription.known_top > subscription.cursor:
                link.add_behind(subscription)
            else:
                # Whatever the reason, the log is not read in a loop.
                self._later(subscription)

    def _later(self, sub: Subscription) -> None:
        def again() -> None:
            if not sub.closed:
                sub.link.add_behind(sub)

        asyncio.get_running_loop().call_later(self._options.retry_s, again)

    async def _begin(self, sub: Subscription) -> bool:
        with self.contract.timed("subscribe"):
            level = await self._start(sub)
        if not sub.closed:
            self.contract.check_output(sub)
        return level

    async def _start(self, sub: Subscription) -> bool:
        sub.known_top = 0
        reset: ResetReason | None = None
        if sub.resume is None:
            position = await self._log.position(sub.user)
            point = ResumePoint(position.epoch, position.top, position.event_id, position.mark)
        else:
            position, reset, mark = await self._log.check_resume(sub.user, sub.resume)
            point = sub.resume._replace(mark=mark)
        if sub.closed:
            return True
        sub.started = True
        sub.link.put(Subscribed(sub.user, sub.generation, position, sub.resume is not None and reset is None))
        if reset is None:
            self._move(sub, point)
        else:
            self._reset(sub, reset, ResumePoint(position.epoch, position.oldest - 1, ""))
        sub.live = max(position.top, sub.known_top) <= sub.cursor
        return sub.live

    async def _advance(self, sub: Subscription) -> bool:
        # What is committed from here on is noted by `offer`; what was committed before, the read sees.
        sub.known_top = 0
        options = self._options
        read = await self._log.read(sub.user, sub.cursor, options.page_entries, options.page_bytes)
        if sub.closed:
            return True
        position = read.position
        if not position.epoch:
            # The log is gone. One that is there is made, so that the gateway can be told a place in it.
            _ = await self._log.position(sub.user)
            return False
        point = ResumePoint(sub.epoch, sub.cursor, sub.event_id, sub.mark)
        if (broken := break_of(point, read)) is not None:
            point = broken.point
            self._reset(sub, broken.reason, point)
        if entries := following(point, read):
            events = tuple(StoredEvent(entry.event_id, entry.blob) for entry in entries)
            item = Entries(sub.user, sub.generation, sub.epoch, entries[0].offset, events)
            sub.link.put(item, entries_size(events))
            last = entries[-1]
            self._move(sub, ResumePoint(sub.epoch, last.offset, last.event_id, mark_after(entries, read)))
        sub.live = max(position.top, sub.known_top) <= sub.cursor
        return sub.live

    def _reset(self, sub: Subscription, reason: ResetReason, point: ResumePoint) -> None:
        sub.link.put(Reset(sub.user, sub.generation, reason, point))
        self._move(sub, point)

    def _move(self, sub: Subscription, point: ResumePoint) -> None:
        sub.epoch, sub.cursor, sub.event_id, sub.mark = point


def _too_many(limit: int) -> LimitExceededError:
    return LimitExceededError(
        "this gateway has as many subscriptions as one may have",
        advice="connect to another gateway",
        limit="max_subscriptions",
        limit_value=limit,
        use=limit,
    )
