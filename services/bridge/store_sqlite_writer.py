"""The SQLite log's writer: one thread that owns the one writing connection and commits in groups.

Everything that waits when the writer comes round goes into one transaction, so an idle log adds no delay and a busy one
batches by itself. Not here: reading (``store_sqlite``), retention (``store_sqlite_sweep``).
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from carrel.errors import CarrelError, InternalError, QueueFullError, StoreUnavailableError
from services.bridge.models import Append, AppendResult
from services.bridge.store_sqlite_session import LogSession
from services.bridge.store_sqlite_sweep import Slice, Sweeper

__all__ = ["LogWriter", "lost"]

_GROUP_EVENTS: Final = 512  # bounds the time one transaction takes, and so the wait of the events behind it
_BACKLOG_PAUSE_S: Final = 0.005
_EVENT_COST: Final = 1024  # bytes an event weighs in the queue beside its blob

_Outcome = tuple["asyncio.Future[Any]", Any, CarrelError | None]


def lost(error: sqlite3.Error | OSError) -> StoreUnavailableError:
    """The error that callers get when SQLite or its file fails."""
    return StoreUnavailableError(
        f"the event log cannot be used: {error}",
        advice="check the log's folder: free space, permissions, whether another program holds the file",
        retry_after_s=1.0,
    )


class _Op:
    """Something to do in the writer's thread: append, make sure that a user's log exists, or call ``job``."""

    __slots__ = ("batches", "cost", "future", "job", "user", "weight")

    def __init__(
        self,
        future: asyncio.Future[Any],
        *,
        batches: Sequence[Append] = (),
        user: str | None = None,
        job: Callable[[LogSession], object] | None = None,
    ) -> None:
        self.future = future
        self.batches = batches
        self.user = user
        self.job = job
        self.weight = sum(len(batch.events) for batch in batches) + 1
        self.cost = sum(len(event.blob) for batch in batches for event in batch.events) + self.weight * _EVENT_COST


class LogWriter:
    """The writer's thread, and what the event loop may ask of it.

    Args:
        open_session: Opens the file anew; called in the thread, again after each failure.
        sweeper: Applies the retention, a slice at a time.
        clock: Wall clock in seconds.
        max_queued_bytes: Beyond this, appends are refused instead of queued.
        sweep_interval_s: Seconds between two slices when nothing is known to be due.
    """

    def __init__(
        self,
        open_session: Callable[[], LogSession],
        sweeper: Sweeper,
        clock: Callable[[], float],
        *,
        max_queued_bytes: int,
        sweep_interval_s: float,
    ) -> None:
        self._open_session = open_session
        self._sweeper = sweeper
        self._clock = clock
        self._max_queued = max_queued_bytes
        self._sweep_interval = sweep_interval_s
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Op | None] = queue.SimpleQueue()
        self._queued = 0
        self._closed = False
        self._session: LogSession | None = None
        self._held: _Op | None = None
        self._next_sweep = time.monotonic() + sweep_interval_s
        self._thread = threading.Thread(target=self._run, name="carrel-log-writer", daemon=True)
        self.commits = 0

    def start(self, session: LogSession) -> None:
        """Begin with a session that is open already."""
        self._session = session
        self._thread.start()

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        """Queue appends; the future ends when they are durable."""
        return self._put(_Op(self._loop.create_future(), batches=batches))

    def ensure_user(self, user: str) -> asyncio.Future[None]:
        """Make the user's log if there is none."""
        return self._put(_Op(self._loop.create_future(), user=user))

    def sweep(self) -> asyncio.Future[int]:
        """Apply the retention wholly; the number of entries removed."""
        return self._put(_Op(self._loop.create_future(), job=self._sweep_all))

    def call(self, job: Callable[[LogSession], object]) -> asyncio.Future[Any]:
        """Run ``job`` in the writer's thread, outside any transaction."""
        return self._put(_Op(self._loop.create_future(), job=job))

    async def close(self) -> None:
        """Finish what is queued, then end the thread and close the file."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _put(self, op: _Op) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreUnavailableError("the event log is closed")
        if self._queued + op.cost > self._max_queued and self._queued:
            raise QueueFullError(
                "too much is waiting to be written to the event log",
                retry_after_s=0.1,
                limit="log_queue_bytes",
                limit_value=self._max_queued,
                use=self._queued,
            )
        self._queued += op.cost
        self._queue.put(op)
        return op.future

    # From here on: the writer's thread.

    def _run(self) -> None:
        while True:
            pause = max(0.0, self._next_sweep - time.monotonic())
            try:
                op = self._held or self._queue.get(timeout=pause)
            except queue.Empty:
                self._sweep_slice()
                continue
            self._held = None
            if op is None:
                break
            if op.job is not None:
                self._finish([op], self._call_job)
            else:
                self._finish(self._collect(op), self._commit)
            if time.monotonic() >= self._next_sweep:
                self._sweep_slice()
        self._drop_session()

    def _collect(self, op: _Op) -> list[_Op]:
        group, weight = [op], op.weight
        while weight < _GROUP_EVENTS:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)  # nothing comes after it: `_put` refuses once it is in
                break
            if following.job is not None:
                self._held = following
                break
            group.append(following)
            weight += following.weight
        return group

    def _finish(self, group: list[_Op], work: Callable[[list[_Op]], list[Any]]) -> None:
        """Do ``work`` and tell the callers; whatever fails leaves memory as the file is."""
        failure: CarrelError
        try:
            results = work(group)
        except (sqlite3.Error, OSError) as error:
            self._drop_session()
            failure = lost(error)
        except Exception as error:  # noqa: BLE001  (a value SQLite cannot take must not end the thread all users share)
            self._drop_session()
            if len(group) > 1:
                for op in group:
                    self._finish([op], work)
                return
            failure = InternalError(f"the event log could not take this: {type(error).__name__}")
        else:
            self._deliver([(op.future, result, None) for op, result in zip(group, results, strict=True)], group)
            return
        self._deliver([(op.future, None, failure) for op in group], group)

    def _commit(self, group: list[_Op]) -> list[Any]:
        session = self._open()
        now_ms = int(self._clock() * 1000)
        results: list[Any] = []
        for op in group:
            if op.user is not None:
                session.ensure_user(op.user)
                results.append(None)
            else:
                results.append([session.apply(batch, now_ms) for batch in op.batches])
        session.flush(now_ms)
        self.commits += 1
        return results

    def _call_job(self, group: list[_Op]) -> list[Any]:
        job = group[0].job
        return [job(self._open()) if job else None]

    def _open(self) -> LogSession:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _sweep_all(self, session: LogSession) -> int:
        self._sweeper.restart()
        removed = 0
        while True:
            done = self._slice(session)
            removed += done.removed
            if done.round_done and not done.due:
                return removed

    def _slice(self, session: LogSession) -> Slice:
        session.connection.execute("BEGIN IMMEDIATE")
        outcome = self._sweeper.slice(session, int(self._clock() * 1000))
        session.connection.execute("COMMIT")
        return outcome

    def _sweep_slice(self) -> None:
        due = False
        try:
            if self._session is not None:
                due = self._slice(self._session).due
        except Exception:  # noqa: BLE001  (nobody waits for this; the next append or probe meets the fault and tells)
            self._drop_session()
        self._next_sweep = time.monotonic() + (_BACKLOG_PAUSE_S if due else self._sweep_interval)

    def _deliver(self, outcomes: list[_Outcome], group: list[_Op]) -> None:
        cost = sum(op.cost for op in group)
        try:
            self._loop.call_soon_threadsafe(self._settle, outcomes, cost)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            return

    def _settle(self, outcomes: list[_Outcome], cost: int) -> None:
        self._queued -= cost
        for future, result, failure in outcomes:
            if future.done():
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
