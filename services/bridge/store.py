"""The event log's contract: what every implementation promises. No implementation is in here.

One log per user. Offsets are contiguous from 1 and never used twice; the epoch, 16 random hex digits, stays the same as
long as offsets mean the same entries. Every method takes the user as its verified principal key and sees nothing of
another user's log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from services.bridge.models import (
    Append,
    AppendResult,
    Change,
    Position,
    ReadResult,
    ResumeCheck,
    ResumePoint,
    RunInfo,
    Standing,
)

__all__ = ["ChangeFeed", "EventLog"]


class ChangeFeed(Protocol):
    """News of what other processes append to a shared log.

    News is a hint: it may be late, repeated or lost, and never stands for the log itself. Whoever follows looks at
    ``standings`` from time to time, so that lost news costs time and no event.
    """

    def follow(self, told: Callable[[Change], None], missed: Callable[[Sequence[str] | None], None]) -> None:
        """Whom to tell. ``missed`` names users whose news may have been lost, None for all of them."""
        ...

    def on_return(self, told: Callable[[], None]) -> None:
        """Whom to tell each time the store has been reached anew. That is a hint, too: it may not work all the same."""
        ...

    def listen(self, user: str) -> None:
        """Give news of this user's log, from some moment on that is told as ``missed``."""
        ...

    def unlisten(self, user: str) -> None:
        """Give no more of it."""
        ...

    async def standings(self, users: Sequence[str]) -> list[Standing]:
        """Where the users' logs stand; cheaper than ``position`` for many, and makes none.

        Raises:
            StoreUnavailableError: The store cannot be used.
        """
        ...


class EventLog(Protocol):
    """Per-user append-only logs with idempotent writers.

    What holds after a crash: if ``append``'s result arrived, every event that it calls stored is there, in the same
    order and at the same offsets, and its producer's last number, its run's fence and seal are too. An append whose
    result did not arrive is there wholly or not at all, and sending it again gives the right result either way. The
    in-memory implementation promises this until its process ends; the SQLite one survives the death of the process
    (``kill -9``) always, and that of the machine with ``synchronous="FULL"``. The Redis one promises what Redis's own
    persistence and replication do; where these lose a log's tail, the epoch changes or ``ReadResult.anchor`` and
    ``AppendResult.previous`` show it, and a producer meets it as a gap.

    Every method raises ``StoreUnavailableError`` when the store cannot be used. Then nothing of the call is in effect
    as far as the store could tell, other calls are not harmed, and calls work again once the cause is gone, without
    a restart.
    """

    @property
    def changes(self) -> ChangeFeed | None:
        """News of others' appends, if several processes write to this log; None when it is this process's alone."""
        ...

    @property
    def commits(self) -> int:
        """Transactions of appends since the start."""
        ...

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        """Write many users' events; the future ends when they are durable, results in the order of ``batches``.

        Calls take effect in the order they are made, so the next may be made before the first is done. One refused
        append does not affect the others. For each append, the first that applies:

        1. ``fence`` lower than the highest seen of the run: ``STALE_FENCE``.
        2. The run known with another thread, or the producer with another run: ``MISMATCH``.
        3. Everything in it is in the log already: acknowledged, nothing written, even when the run is sealed.
        4. The run's terminal event is in the log: ``SEALED``.
        5. ``first_number`` beyond the producer's last number + 1 (an unknown producer's is 0): ``GAP``; or, with
           ``gap`` given, the gap is recorded as an entry, the user's epoch changes, and the events follow.
        6. What is not yet in the log is appended.

        Raises:
            QueueFullError: Too much is waiting to be written; nothing of this call is in effect. At once.
            StoreUnavailableError: At once, or from the future.
        """
        ...

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        """Entries with offsets above ``after``: at most ``limit``, and no further one once ``max_bytes`` are reached.

        A log that does not exist reads as empty, with an empty epoch. Never waits for writers.
        """
        ...

    async def position(self, user: str) -> Position:
        """Where the user's log stands; creates an empty one, durable epoch included, if there is none."""
        ...

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        """Whether a reader that has seen everything up to ``point`` may go on: the entry must be there, the same one.

        Offset and epoch alone would miss a log that lost its tail and grew again.
        """
        ...

    async def resolve_run(self, user: str, run_id: str) -> RunInfo | None:
        """The thread-run map's row for this user's run; None when this user has no such run."""
        ...

    async def sweep(self) -> int:
        """Apply the retention now, wholly; the number of entries removed. It also goes on by itself, in slices."""
        ...

    async def probe(self) -> None:
        """Write and read back something of no meaning; returns when the store really works, else raises."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release everything. Calling it again does nothing."""
        ...
