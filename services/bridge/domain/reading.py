"""Reading a user's log from a position and, if asked, following it: what ReadEvents does, without its messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from carrel.errors import UnknownRunError
from services.bridge.domain.chain import break_of, following, mark_after
from services.bridge.domain.hub import Hub
from services.bridge.models import Entry, Page, ReadItem, Reset, ResetReason, ResumePoint, Through
from services.bridge.store import EventLog

__all__ = ["ReadQuery", "read_events"]

_PAGE = 200
# A follower looks again after this even if nothing was announced: another process may have written.
_LOOK_EVERY_S = 5.0
_RETRY_S = 0.5
# A run that was admitted is in the log in a moment, unless the emitter is away.
_RUN_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """What to read.

    Args:
        user: The verified user.
        resume: Where to go on; None for the oldest entry.
        run_id: The one run asked for, or empty.
        keep: Which entries are asked for; None for all.
        follow: Go on at the top; ends after the run's terminal event when ``run_id`` is set.
        limit: At most this many entries; 0 for no bound.
    """

    user: str
    resume: ResumePoint | None = None
    run_id: str = ""
    keep: Callable[[Entry], bool] | None = None
    follow: bool = False
    limit: int = 0


async def read_events(log: EventLog, hub: Hub, query: ReadQuery) -> AsyncGenerator[ReadItem, None]:
    """Entries in pages; a reset wherever the position stops being usable; ``Through`` at the top.

    Ends at the top when the hub is ending, too.

    Raises:
        UnknownRunError: The log has nothing of the run, nor had it within ``_RUN_WAIT_S`` of following.
        StoreUnavailableError: The log cannot be read; what was given so far is right.
    """
    reading = _Reading(log, query)
    with hub.watch(query.user) as grown:
        if query.run_id:
            await _known(log, hub, query, grown)
        for item in await reading.begin():
            yield item
        while True:
            grown.clear()
            last = await reading.last_round()
            while not reading.at_top and not reading.done:
                before = reading.point
                for item in await reading.page():
                    yield item
                if reading.point == before and not reading.at_top:
                    await asyncio.sleep(_RETRY_S)  # whatever the reason, the log is not read in a loop
            yield Through(reading.point)
            if last or reading.done or hub.ending:
                return
            await _wait(grown)
            reading.at_top = False


class _Reading:
    """Where one call of ``read_events`` stands."""

    def __init__(self, log: EventLog, query: ReadQuery) -> None:
        self._log = log
        self._query = query
        self._left = query.limit
        self.point = ResumePoint("", 0, "")
        self.at_top = False
        self._passed_over = False

    @property
    def done(self) -> bool:
        """Whether the limit is reached."""
        return self._query.limit > 0 and self._left <= 0

    async def begin(self) -> list[ReadItem]:
        query, log = self._query, self._log
        if query.resume is None:
            position = await log.position(query.user)
            run = await log.resolve_run(query.user, query.run_id) if query.run_id else None
            start = max(position.oldest, run.first_offset if run else 1) - 1
            self.point = ResumePoint(position.epoch, start, "")
            if run and run.first_offset < position.oldest:
                # A run that is asked for whole begins with what is kept of it, and that is said.
                return [Reset(query.user, 0, ResetReason.TRIMMED, self.point)]
            return []
        position, reason, mark = await log.check_resume(query.user, query.resume)
        if reason is None:
            self.point = query.resume._replace(mark=mark)
            return []
        self.point = ResumePoint(position.epoch, position.oldest - 1, "")
        return [Reset(query.user, 0, reason, self.point)]

    async def last_round(self) -> bool:
        """Whether nothing more is to come than what is in the log now."""
        if not self._query.follow:
            return True
        if not self._query.run_id:
            return False
        run = await self._log.resolve_run(self._query.user, self._query.run_id)
        return run is not None and run.sealed

    async def page(self) -> list[ReadItem]:
        read = await self._log.read(self._query.user, self.point.offset, _PAGE)
        position, items = read.position, list[ReadItem]()
        self._passed_over = False
        if not position.epoch:
            _ = await self._log.position(self._query.user)  # the log is gone: a place can only be in one that is there
            return items
        if (broken := break_of(self.point, read)) is not None:
            self.point = broken.point
            items.append(Reset(self._query.user, 0, broken.reason, self.point))
        if entries := following(self.point, read):
            items += self._keep(position.epoch, entries)
            if self.point.offset == entries[-1].offset:
                self.point = self.point._replace(mark=mark_after(entries, read))
        self.at_top = self.point.offset >= position.top
        if not self.at_top and not self.done and self._passed_over:
            # A reader that is cut off now need not pass over them again.
            items.append(Through(self.point))
        return items

    def _keep(self, epoch: str, entries: tuple[Entry, ...]) -> list[ReadItem]:
        kept = tuple(filter(self._query.keep, entries)) if self._query.keep else entries
        last = entries[-1]
        self._passed_over = not kept or kept[-1] is not last
        if self._query.limit and len(kept) >= self._left:
            kept = kept[: self._left]
            last = kept[-1]
        self._left -= len(kept)
        self.point = ResumePoint(epoch, last.offset, last.event_id)
        return [Page(epoch, kept)] if kept else []


async def _known(log: EventLog, hub: Hub, query: ReadQuery, grown: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    latest = loop.time() + (_RUN_WAIT_S if query.follow else 0.0)
    while True:
        grown.clear()
        if await log.resolve_run(query.user, query.run_id) is not None:
            return
        left = latest - loop.time()
        if left <= 0 or hub.ending:
            raise UnknownRunError("the log has nothing of this run", run_id=query.run_id)
        await _wait(grown, left)


async def _wait(grown: asyncio.Event, within_s: float = _LOOK_EVERY_S) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(within_s, _LOOK_EVERY_S)):
            await grown.wait()
