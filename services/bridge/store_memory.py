"""The event log in memory, for tests: the plainest statement of the contract. It ends with the process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

from carrel.errors import StoreUnavailableError
from services.bridge.models import (
    Append,
    AppendResult,
    Entry,
    Position,
    ReadResult,
    ResumeCheck,
    ResumePoint,
    Retention,
    RunInfo,
)
from services.bridge.store_rules import RunState, UserState, apply_append, new_epoch, resume_reset

__all__ = ["MemoryEventLog"]


class _UserLog:
    def __init__(self, user: str) -> None:
        self.state = UserState(user, new_epoch())
        self.entries: deque[Entry] = deque()
        self.times: deque[float] = deque()
        self.touched = 0.0

    def position(self) -> Position:
        return self.state.position(self.entries[-1].event_id if self.entries else "")

    def at(self, offset: int) -> Entry | None:
        index = offset - self.state.oldest
        return self.entries[index] if 0 <= index < len(self.entries) else None


class MemoryEventLog:
    """An ``EventLog`` of dictionaries; single-threaded, on the loop that calls it.

    Args:
        retention: How much is kept; applied by ``sweep`` only, so a test decides when.
        clock: Wall clock in seconds.
    """

    def __init__(self, retention: Retention | None = None, clock: Callable[[], float] = time.time) -> None:
        self._retention = retention or Retention()
        self._clock = clock
        self._logs: dict[str, _UserLog] = {}
        self._closed = False
        self.commits = 0

    @property
    def changes(self) -> None:
        """Nobody else writes to it."""
        return

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        self._check_open()
        self.commits += 1
        future: asyncio.Future[list[AppendResult]] = asyncio.get_running_loop().create_future()
        future.set_result([self._append(batch) for batch in batches])
        return future

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        self._check_open()
        log = self._logs.get(user)
        if log is None:
            return ReadResult((), Position("", 0, 1), trimmed=False)
        state = log.state
        start = max(after + 1, state.oldest) - state.oldest
        entries: list[Entry] = []
        size = 0
        for entry in itertools.islice(log.entries, start, start + limit):
            entries.append(entry)
            size += len(entry.blob)
            if size >= max_bytes:
                break
        return ReadResult(tuple(entries), log.position(), trimmed=after + 1 < state.oldest)

    async def position(self, user: str) -> Position:
        self._check_open()
        return self._log(user).position()

    async def check_resume(self, user: str, point: ResumePoint) -> ResumeCheck:
        self._check_open()
        log = self._log(user)
        position, entry = log.position(), log.at(point.offset)
        return ResumeCheck(position, resume_reset(position, point, entry.event_id if entry else None))

    async def resolve_run(self, user: str, run_id: str) -> RunInfo | None:
        self._check_open()
        log = self._logs.get(user)
        run = log.state.runs.get(run_id) if log else None
        return run.info() if run else None

    async def sweep(self) -> int:
        self._check_open()
        removed = 0
        for user, log in list(self._logs.items()):
            removed += self._sweep_log(log)
            empty = not log.entries and not log.state.runs
            if empty and log.touched < self._clock() - self._retention.idle_ttl_s:
                del self._logs[user]
        return removed

    def retain(self, retention: Retention) -> None:
        """Keep another amount from the next ``sweep`` on."""
        self._retention = retention

    async def probe(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the event log is closed")

    def _log(self, user: str) -> _UserLog:
        log = self._logs.get(user)
        if log is None:
            log = self._logs[user] = _UserLog(user)
            log.touched = self._clock()
        return log

    def _append(self, append: Append) -> AppendResult:
        log = self._log(append.user)
        state, now = log.state, self._clock()
        run, producer = state.runs.get(append.run_id), state.producers.get(append.producer_id)
        result = apply_append(state, append, run, producer, lambda: int(now * 1000))
        log.entries.extend(result.entries)
        log.times.extend(now for _ in result.events)
        log.touched = now
        return result

    def _sweep_log(self, log: _UserLog) -> int:
        keep, removed, cutoff = self._retention, 0, self._clock() - self._retention.max_age_s
        while log.entries and (len(log.entries) > keep.max_entries or log.times[0] < cutoff):
            log.entries.popleft()
            log.times.popleft()
            log.state.oldest += 1
            removed += 1
        now = self._clock()
        for run in list(log.state.runs.values()):
            self._sweep_run(log, run, now)
        return removed

    def _sweep_run(self, log: _UserLog, run: RunState, now: float) -> None:
        state, keep = log.state, self._retention
        ended = run.sealed_at is not None and run.sealed_at / 1000 < now - keep.producer_ttl_s
        # The log's last write stands for the run's: an open run is forgotten only when its user has been gone as long.
        abandoned = run.sealed_at is None and log.touched < now - keep.idle_ttl_s
        if not ended and not abandoned:
            return
        for producer in [p for p in state.producers.values() if p.run is run]:
            del state.producers[producer.producer_id]
        if run.last_offset < state.oldest:
            del state.runs[run.run_id]
