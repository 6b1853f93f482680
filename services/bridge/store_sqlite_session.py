"""One life of the SQLite log's writing connection: the users' states it has loaded and the changes not yet written.

A session is used by the writer's thread alone. Whatever goes wrong, the session is thrown away as a whole and the next
one loads what the file really holds, so memory and file cannot drift apart.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from services.bridge.models import Append, AppendResult
from services.bridge.store_rules import ProducerState, RunState, UserState, apply_append, new_epoch
from services.bridge.tables import (
    MAX_UID,
    OFFSET_BITS,
    insert_entries,
    load_producer,
    load_run,
    load_user,
)

__all__ = ["SNAPSHOT_EVERY", "LogSession"]

_STATEMENT_ROWS: Final = 128
_COLUMNS: Final = 6
SNAPSHOT_EVERY: Final = 256  # entries of one user that the next session has to read to know where it stands

_PUT_USER: Final = "INSERT INTO users VALUES (?,?,?,?,?,?)"
_SET_USER: Final = "UPDATE users SET epoch = ?, oldest = ?, saved = ?, touched_ms = ? WHERE uid = ?"
_SET_EPOCH: Final = "UPDATE users SET epoch = ? WHERE uid = ?"
_PUT_RUN: Final = """
INSERT INTO runs (uid, run_id, thread_id, fence, first_offset, last_offset, sealed_ms, touched_ms)
VALUES (?,?,?,?,?,?,?,?)
ON CONFLICT (uid, run_id) DO UPDATE SET fence = excluded.fence, last_offset = excluded.last_offset,
    sealed_ms = excluded.sealed_ms, touched_ms = excluded.touched_ms
"""
_PUT_PRODUCER: Final = """
INSERT INTO producers (pid, uid, producer_id, run_id, last_number) VALUES (?,?,?,?,?)
ON CONFLICT (pid) DO UPDATE SET last_number = excluded.last_number
"""


class LogSession:
    """States and pending changes over ``connection``, which it owns.

    Args:
        connection: From ``tables.open_writer``.
        inode: The file's, by which a file that was removed or replaced is noticed.
        max_users: How many users' states stay in memory between transactions.
        max_entries: Users with more entries are noted in ``overfull``, for the retention.
    """

    def __init__(self, connection: sqlite3.Connection, inode: int, *, max_users: int, max_entries: int) -> None:
        self.connection = connection
        self.inode = inode
        self.overfull: set[str] = set()
        self._max_users = max_users
        self._max_entries = max_entries
        self._users: OrderedDict[str, UserState] = OrderedDict()
        (self._last_uid,) = connection.execute("SELECT coalesce(max(uid), 0) FROM users").fetchone()
        (self._last_pid,) = connection.execute("SELECT coalesce(max(pid), 0) FROM producers").fetchone()
        self._rows: list[Any] = []
        self._new_users: list[UserState] = []
        self._new_producers: list[tuple[UserState, ProducerState]] = []
        self._new_epochs: list[UserState] = []
        self._urgent: set[UserState] = set()
        self._stale: set[UserState] = set()

    def user(self, user: str) -> UserState | None:
        """The user's state, loaded if need be; None when there is no such log."""
        state = self._users.get(user)
        if state is not None:
            self._users.move_to_end(user)
            return state
        state = load_user(self.connection, user)
        if state is not None:
            self._users[user] = state
        return state

    def ensure_user(self, user: str) -> UserState:
        """The user's state; an empty log is made with the next ``flush`` when there is none."""
        state = self.user(user)
        if state is None:
            if self._last_uid >= MAX_UID:
                raise OverflowError("the event log has no user keys left")
            self._last_uid += 1
            state = self._users[user] = UserState(user, new_epoch(), uid=self._last_uid)
            self._new_users.append(state)
        return state

    def drop_user(self, user: str) -> None:
        """Forget the state of a log that is being deleted."""
        self._users.pop(user, None)

    def apply(self, append: Append, now_ms: int) -> AppendResult:
        """Decide on one append and note what it changes; nothing is in the file before ``flush``."""
        state = self.ensure_user(append.user)
        run = state.runs.get(append.run_id)
        if run is None:
            run = load_run(self.connection, state, append.run_id)
        producer = state.producers.get(append.producer_id)
        if producer is None:
            producer = load_producer(self.connection, state, append.producer_id)
        result = apply_append(state, append, run, producer, lambda: now_ms)
        if result.events:
            self._note_entries(state, append, result, now_ms)
        if state.urgent:
            self._urgent.add(state)
        return result

    def _note_entries(self, state: UserState, append: Append, result: AppendResult, now_ms: int) -> None:
        producer = state.producers[append.producer_id]
        if not producer.pid:
            self._last_pid += 1
            producer.pid = self._last_pid
            self._new_producers.append((state, producer))
        if result.events[0] is append.gap:
            self._new_epochs.append(state)
        pid, rows = producer.pid, self._rows
        key = state.uid << OFFSET_BITS | result.first_offset
        number = result.through - len(result.events) + 1
        for event_id, blob in result.events:
            rows += (key, now_ms, pid, number, event_id, blob)
            key += 1
            number += 1
        if state.top - state.saved >= SNAPSHOT_EVERY:
            self._stale.add(state)
            if state.top - state.oldest >= self._max_entries:
                self.overfull.add(state.user)

    def flush(self, now_ms: int) -> None:
        """Write everything noted in one transaction."""
        rows, connection = self._rows, self.connection
        plain = not (self._new_users or self._new_producers or self._new_epochs or self._urgent or self._stale)
        if plain and len(rows) <= _STATEMENT_ROWS * _COLUMNS:
            # A single statement is its own transaction: the fewest hand-overs of the interpreter's lock.
            if rows:
                connection.execute(insert_entries(len(rows) // _COLUMNS), rows)
        else:
            connection.execute("BEGIN IMMEDIATE")
            self._write_noted(now_ms)
            connection.execute("COMMIT")
        self._clear()

    def _write_noted(self, now_ms: int) -> None:
        connection, rows, step = self.connection, self._rows, _STATEMENT_ROWS * _COLUMNS
        connection.executemany(
            _PUT_USER, [(u.uid, u.user, u.epoch, u.oldest, u.saved, now_ms) for u in self._new_users]
        )
        connection.executemany(_SET_EPOCH, [(u.epoch, u.uid) for u in self._new_epochs])
        for state in self._urgent:
            self._put_runs(state, state.urgent, now_ms)
        self._put_producers(self._new_producers)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            connection.execute(insert_entries(len(part) // _COLUMNS), part)
        for state in self._stale:
            self.snapshot(state, now_ms)

    def close(self) -> None:
        """Close the connection; what was not flushed is not in the file, nor is an open transaction's work."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    def snapshot(self, state: UserState, now_ms: int) -> None:
        """Bring the user's rows up to date within the open transaction, and unload runs and producers.

        What they said is in the rows now; the ones still active are loaded again when they are next met.
        """
        self._put_runs(state, state.runs.values(), now_ms)
        self._put_producers((state, producer) for producer in state.producers.values())
        self.connection.execute(_SET_USER, (state.epoch, state.oldest, state.top, now_ms, state.uid))
        state.saved = state.top
        state.runs.clear()
        state.producers.clear()

    def _put_runs(self, state: UserState, runs: Iterable[RunState], now_ms: int) -> None:
        uid = state.uid
        self.connection.executemany(
            _PUT_RUN,
            [(uid, r.run_id, r.thread_id, r.fence, r.first_offset, r.last_offset, r.sealed_at, now_ms) for r in runs],
        )

    def _put_producers(self, producers: Iterable[tuple[UserState, ProducerState]]) -> None:
        self.connection.executemany(
            _PUT_PRODUCER, [(p.pid, u.uid, p.producer_id, p.run.run_id, p.last_number) for u, p in producers]
        )

    def _clear(self) -> None:
        self._rows.clear()
        self._new_users.clear()
        self._new_producers.clear()
        self._new_epochs.clear()
        self._stale.clear()
        for state in self._urgent:
            state.urgent.clear()
        self._urgent.clear()
        while len(self._users) > self._max_users:
            self._users.popitem(last=False)
