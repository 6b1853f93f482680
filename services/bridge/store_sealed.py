"""An event log whose entries are sealed before they reach its store, and opened when they are read: over any other log.

Not sealed are the ids of users, runs, threads and events, numbers and times, by which the store finds its way. Entries
of before there was a key are read as they are; those of a key that is gone are gone for their reader, not for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from carrel.errors import CarrelError, StoreUnavailableError
from servicekit.sealing import Seals
from services.bridge.models import (
    ONE_USER,
    Append,
    AppendResult,
    Entry,
    Position,
    ReadResult,
    ResumeCheck,
    ResumePoint,
    RunInfo,
    StoredEvent,
)
from services.bridge.store import ChangeFeed, EventLog

__all__ = ["SealedEventLog"]

_FIELD: Final = "log.entry"


class SealedEventLog:
    """See ``EventLog`` and the module. Closing it closes the log below.

    Args:
        log: Where the entries go.
        seals: Seals them, each bound to its user and its event's id.
    """

    def __init__(self, log: EventLog, seals: Seals) -> None:
        self._log = log
        self._seals = seals

    @property
    def changes(self) -> ChangeFeed | None:
        """See ``EventLog``."""
        return self._log.changes

    @property
    def commits(self) -> int:
        """See ``EventLog``."""
        return self._log.commits

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        """See ``EventLog``."""
        sealed = [self._sealed(batch) for batch in batches]
        below = self._log.append(sealed)
        told: asyncio.Future[list[AppendResult]] = asyncio.get_running_loop().create_future()

        def done(_: asyncio.Future[list[AppendResult]]) -> None:
            if told.cancelled():
                # Whoever asked has gone; what was asked is done all the same, or failed.
                if not below.cancelled():
                    below.exception()  # taken, so that nobody is told of it as forgotten
            elif below.cancelled():
                told.cancel()
            elif (failure := below.exception()) is not None:
                told.set_exception(failure)
            else:
                pairs = zip(batches, sealed, below.result(), strict=True)
                told.set_result([_as_given(given, put, result) for given, put, result in pairs])

        below.add_done_callback(done)
        return told

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        """See ``EventLog``."""
        found = await self._log.read(user, after, limit, max_bytes)
        return found._replace(entries=tuple(self._opened(user, entry) for entry in found.entries))

    async def position(self, user: str) -> Position:
        """See ``EventLog``."""
        return await self._log.position(user)

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        """See ``EventLog``."""
        return await self._log.check_resume(user, point)

    async def resolve_run(self, user: str, run_id: str) -> RunInfo | None:
        """See ``EventLog``."""
        return await self._log.resolve_run(user, run_id)

    async def sweep(self) -> int:
        """See ``EventLog``."""
        return await self._log.sweep()

    async def probe(self) -> None:
        """See ``EventLog``."""
        await self._log.probe()

    async def close(self) -> None:
        """See ``EventLog``."""
        await self._log.close()

    def _sealed(self, batch: Append) -> Append:
        gap = batch.gap
        return batch._replace(
            events=tuple(self._seal(batch.user, event) for event in batch.events),
            gap=None if gap is None else self._seal(batch.user, gap),
        )

    def _seal(self, user: str, event: StoredEvent) -> StoredEvent:
        return StoredEvent(event.event_id, self._seals.seal(_FIELD, user, event.event_id, event.blob))

    def _opened(self, user: str, entry: Entry) -> Entry:
        try:
            return entry._replace(blob=self._seals.open(_FIELD, user, entry.event_id, entry.blob))
        except CarrelError as error:
            # The store works, and so does everybody else's log.
            raise StoreUnavailableError(
                f"an entry of the event log cannot be opened: {error.message}", advice=error.advice, scope=ONE_USER
            ) from error


def _as_given(given: Append, put: Append, result: AppendResult) -> AppendResult:
    """The result with the events as they were given: readers that are connected need not have them opened."""
    if not result.events:
        return result
    plain = dict(zip(put.events, given.events, strict=True))
    if given.gap is not None and put.gap is not None:
        plain[put.gap] = given.gap
    return result._replace(events=tuple(plain[event] for event in result.events))
