"""What an append does to a user's log, as a pure function over loaded state; shared by the stores written in Python.

Neither loads nor saves: a store finds the state, calls ``apply_append`` and writes what changed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from services.bridge.models import (
    Append,
    AppendResult,
    Position,
    Refusal,
    RefusalReason,
    ResetReason,
    ResumePoint,
    RunInfo,
    StoredEvent,
)

__all__ = ["MAX_OFFSET", "ProducerState", "RunState", "UserState", "apply_append", "new_epoch", "resume_reset"]

# 2^35 offsets per user and 2^28 users share one 63-bit key in the SQLite log: a thousand events a second for a year.
MAX_OFFSET = (1 << 35) - 1


def new_epoch() -> str:
    """A fresh epoch: 16 random hex digits."""
    return secrets.token_hex(8)


class RunState:
    """What the log knows of one run; ``sealed_at`` (ms) is None until its terminal event is in."""

    __slots__ = ("fence", "first_offset", "last_offset", "run_id", "sealed_at", "thread_id")

    def __init__(self, run_id: str, thread_id: str, fence: int, first_offset: int) -> None:
        self.run_id = run_id
        self.thread_id = thread_id
        self.fence = fence
        self.first_offset = first_offset
        self.last_offset = first_offset
        self.sealed_at: int | None = None

    def info(self) -> RunInfo:
        """This run as the thread-run map shows it."""
        return RunInfo(
            run_id=self.run_id,
            thread_id=self.thread_id,
            fence=self.fence,
            first_offset=self.first_offset,
            last_offset=self.last_offset,
            sealed=self.sealed_at is not None,
        )


class ProducerState:
    """What the log knows of one producer; ``pid`` is the store's own short key, 0 before it has one."""

    __slots__ = ("last_number", "pid", "producer_id", "run")

    def __init__(self, producer_id: str, run: RunState, last_number: int = 0, pid: int = 0) -> None:
        self.producer_id = producer_id
        self.run = run
        self.last_number = last_number
        self.pid = pid


class UserState:
    """One user's log without its entries.

    ``runs`` and ``producers`` may be a part of those that exist; ``saved`` is the offset up to which their rows are
    up to date. ``urgent`` are runs whose rows cannot be worked out again from the entries and must be written now.
    """

    __slots__ = ("epoch", "oldest", "producers", "runs", "saved", "top", "uid", "urgent", "user")

    def __init__(self, user: str, epoch: str, *, uid: int = 0, top: int = 0, oldest: int = 1) -> None:
        self.user = user
        self.uid = uid
        self.epoch = epoch
        self.top = top
        self.oldest = oldest
        self.saved = top
        self.runs: dict[str, RunState] = {}
        self.producers: dict[str, ProducerState] = {}
        self.urgent: set[RunState] = set()

    def position(self, event_id: str) -> Position:
        """Where the log stands; ``event_id`` is that of its newest entry."""
        return Position(self.epoch, self.top, self.oldest, event_id)


def apply_append(
    user: UserState, append: Append, run: RunState | None, producer: ProducerState | None, clock_ms: Callable[[], int]
) -> AppendResult:
    """Take or refuse ``append`` by the rules of ``store.EventLog``; changes the states in place."""
    last = producer.last_number if producer is not None else 0
    if append.notified and append.fence > (run.fence if run is not None else 0):
        return _refused(user, RefusalReason.FENCE, last)
    if run is not None:
        if append.fence < run.fence:
            return _refused(user, RefusalReason.STALE_FENCE, last)
        if run.thread_id != append.thread_id or (producer is not None and producer.run is not run):
            return _refused(user, RefusalReason.MISMATCH, last)
    elif producer is not None:
        return _refused(user, RefusalReason.MISMATCH, last)
    known = last + 1 - append.first_number
    fresh = append.events[known:] if known > 0 else append.events
    if known >= 0 and not fresh:
        if run is not None and append.fence > run.fence:
            run.fence = append.fence
            user.urgent.add(run)
        return AppendResult(last, user.epoch, 0, ())
    if run is not None and run.sealed_at is not None:
        return _refused(user, RefusalReason.SEALED, last)
    if known < 0:
        if append.gap is None:
            return _refused(user, RefusalReason.GAP, last)
        fresh = (append.gap, *append.events)
        user.epoch = new_epoch()
    if user.top + len(fresh) > MAX_OFFSET:
        raise OverflowError("the user's log has no offsets left")
    return _store(user, append, fresh, run, producer, clock_ms)


def _store(
    user: UserState,
    append: Append,
    fresh: tuple[StoredEvent, ...],
    run: RunState | None,
    producer: ProducerState | None,
    clock_ms: Callable[[], int],
) -> AppendResult:
    first = user.top + 1
    user.top += len(fresh)
    if run is None:
        run = user.runs[append.run_id] = RunState(append.run_id, append.thread_id, append.fence, first)
        user.urgent.add(run)
    elif append.fence > run.fence:
        run.fence = append.fence
        user.urgent.add(run)
    run.last_offset = user.top
    if producer is None:
        producer = user.producers[append.producer_id] = ProducerState(append.producer_id, run)
    producer.last_number = append.first_number + len(append.events) - 1
    if append.terminal:
        run.sealed_at = clock_ms()
        user.urgent.add(run)
    return AppendResult(producer.last_number, user.epoch, first, fresh)


def resume_reset(position: Position, point: ResumePoint, event_id: str | None) -> ResetReason | None:
    """Why ``point`` cannot be resumed from, or None; ``event_id`` is that of the entry at its offset, None if gone."""
    if point.epoch != position.epoch:
        return ResetReason.EPOCH_CHANGED
    if point.offset > position.top:
        return ResetReason.BEYOND_TOP
    if point.offset == 0:
        return ResetReason.TRIMMED if position.oldest > 1 else None
    if event_id is None:
        return ResetReason.TRIMMED
    return None if event_id == point.event_id else ResetReason.EVENT_MISMATCH


def _refused(user: UserState, reason: RefusalReason, last: int) -> AppendResult:
    return AppendResult(last, user.epoch, 0, (), Refusal(reason, last))
