"""Retention of the SQLite log, in slices small enough not to be felt by the appends between them.

Runs in the writer's thread. Each slice is one transaction that removes at most ``_SLICE_ENTRIES`` entries for age and
as many for their number, and looks at a few runs and users.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from services.bridge.models import Retention
from services.bridge.store_rules import UserState
from services.bridge.store_sqlite_session import SNAPSHOT_EVERY, LogSession
from services.bridge.tables import OFFSET_BITS

__all__ = ["Slice", "Sweeper"]

_SLICE_ENTRIES: Final = 200
_SLICE_RUNS: Final = 50
_SLICE_USERS: Final = 200

_USERS: Final = "SELECT uid, user, saved - oldest + 1, touched_ms FROM users WHERE uid > ? ORDER BY uid LIMIT ?"
_USER: Final = "SELECT user FROM users WHERE uid = ?"
_TOUCHED: Final = "SELECT touched_ms FROM users WHERE uid = ?"
_ANY_RUN: Final = "SELECT 1 FROM runs WHERE uid = ? LIMIT 1"
_TRIM: Final = "DELETE FROM entries WHERE key >= ? AND key < ?"
_OLDEST_AT: Final = "SELECT at_ms FROM entries ORDER BY seq LIMIT 1"
_EXPIRED: Final = "SELECT seq, key, at_ms FROM entries ORDER BY seq LIMIT ?"
_ENDED: Final = """
SELECT users.user, runs.run_id FROM runs JOIN users USING (uid)
WHERE sealed_ms IS NOT NULL AND producers_kept = 1 AND sealed_ms < ? ORDER BY sealed_ms LIMIT ?
"""
_ABANDONED: Final = "SELECT run_id FROM runs WHERE uid = ? AND sealed_ms IS NULL AND touched_ms < ?"
_FORGET_PRODUCERS: Final = "DELETE FROM producers WHERE uid = ? AND run_id = ?"
_MARK_RUN: Final = "UPDATE runs SET producers_kept = 0, sealed_ms = coalesce(sealed_ms, 0) WHERE uid = ? AND run_id = ?"
_FORGET_RUNS: Final = "DELETE FROM runs WHERE uid = ? AND producers_kept = 0 AND last_offset < ?"


class Slice(NamedTuple):
    """What one slice did: entries removed, whether more is due at once, whether every user has been looked at."""

    removed: int
    due: bool
    round_done: bool


class Sweeper:
    """Removes what the retention no longer keeps, one slice per call.

    Args:
        retention: How much is kept.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._after_uid = 0  # where the round over all users stands

    def restart(self) -> None:
        """Begin a fresh round over all users."""
        self._after_uid = 0

    def slice(self, session: LogSession, now_ms: int) -> Slice:
        """One slice within an open transaction."""
        aged = self._expire(session, now_ms)
        ended = self._end_runs(session, now_ms)
        trimmed = 0
        while session.overfull and trimmed < _SLICE_ENTRIES:
            user = session.overfull.pop()
            trimmed += self._visit(session, user, now_ms, _SLICE_ENTRIES - trimmed)
            if trimmed >= _SLICE_ENTRIES:
                session.overfull.add(user)
        done = False
        if trimmed < _SLICE_ENTRIES:
            visited, done = self._round(session, now_ms, _SLICE_ENTRIES - trimmed)
            trimmed += visited
        due = aged >= _SLICE_ENTRIES or ended >= _SLICE_RUNS or trimmed >= _SLICE_ENTRIES
        return Slice(aged + trimmed, due, done)

    def _expire(self, session: LogSession, now_ms: int) -> int:
        cutoff = now_ms - int(self._retention.max_age_s * 1000)
        first = session.connection.execute(_OLDEST_AT).fetchone()
        if first is None or first[0] >= cutoff:
            return 0
        reached: dict[int, int] = {}
        count = last = 0
        for seq, key, at_ms in session.connection.execute(_EXPIRED, (_SLICE_ENTRIES,)).fetchall():
            if at_ms >= cutoff:
                break
            reached[key >> OFFSET_BITS] = key & ((1 << OFFSET_BITS) - 1)
            last = seq
            count += 1
        for uid, offset in reached.items():
            row = session.connection.execute(_USER, (uid,)).fetchone()
            state = session.user(row[0]) if row else None
            if state is not None:
                self._move_oldest(session, state, offset + 1, now_ms)
        session.connection.execute("DELETE FROM entries WHERE seq <= ?", (last,))
        return count

    def _end_runs(self, session: LogSession, now_ms: int) -> int:
        cutoff = now_ms - int(self._retention.producer_ttl_s * 1000)
        ended = session.connection.execute(_ENDED, (cutoff, _SLICE_RUNS)).fetchall()
        for user, run_id in ended:
            state = session.user(user)
            if state is not None:
                self._forget_producers(session, state, run_id, now_ms)
        return len(ended)

    def _round(self, session: LogSession, now_ms: int, limit: int) -> tuple[int, bool]:
        """Go on with the round over all users: entries removed, and whether the round is done."""
        idle_cutoff = now_ms - int(self._retention.idle_ttl_s * 1000)
        # `saved` may be behind by what a snapshot waits for and one append's events more.
        nearly_full = self._retention.max_entries - SNAPSHOT_EVERY - 128
        users = session.connection.execute(_USERS, (self._after_uid, _SLICE_USERS)).fetchall()
        removed = 0
        for uid, user, size, touched_ms in users:
            if size > nearly_full or touched_ms < idle_cutoff:
                removed += self._visit(session, user, now_ms, limit - removed)
            if removed >= limit:
                return removed, False  # and the same user is visited again
            self._after_uid = uid
        done = len(users) < _SLICE_USERS
        if done:
            self._after_uid = 0
        return removed, done

    def _visit(self, session: LogSession, user: str, now_ms: int, limit: int) -> int:
        """Look at one user: its number of entries, its abandoned runs, and whether anything is left of it at all."""
        state = session.user(user)
        if state is None:
            return 0
        removed = min(limit, state.top - state.oldest + 1 - self._retention.max_entries)
        if removed > 0:
            base, start = state.uid << OFFSET_BITS, state.oldest
            self._move_oldest(session, state, start + removed, now_ms)
            session.connection.execute(_TRIM, (base | start, base | state.oldest))
            return removed
        cutoff = now_ms - int(self._retention.idle_ttl_s * 1000)
        (touched,) = session.connection.execute(_TOUCHED, (state.uid,)).fetchone()
        if touched < cutoff:
            self._forget_idle(session, state, cutoff, now_ms)
        return 0

    def _forget_idle(self, session: LogSession, state: UserState, cutoff: int, now_ms: int) -> None:
        if state.top > state.saved:
            session.snapshot(state, now_ms)  # touches what was in use, and the user: looked at again after the next ttl
            return
        abandoned = session.connection.execute(_ABANDONED, (state.uid, cutoff)).fetchall()
        for (run_id,) in abandoned:
            self._forget_producers(session, state, run_id, now_ms)
        if state.oldest > state.top and not session.connection.execute(_ANY_RUN, (state.uid,)).fetchone():
            session.connection.execute("DELETE FROM users WHERE uid = ?", (state.uid,))
            session.drop_user(state.user)

    def _forget_producers(self, session: LogSession, state: UserState, run_id: str, now_ms: int) -> None:
        # The entries after `saved` name their producers: nothing of a producer may go before they are accounted for.
        session.snapshot(state, now_ms)
        session.connection.execute(_FORGET_PRODUCERS, (state.uid, run_id))
        session.connection.execute(_MARK_RUN, (state.uid, run_id))
        session.connection.execute(_FORGET_RUNS, (state.uid, state.oldest))

    def _move_oldest(self, session: LogSession, state: UserState, oldest: int, now_ms: int) -> None:
        state.oldest = oldest
        session.snapshot(state, now_ms)
        session.connection.execute(_FORGET_RUNS, (state.uid, oldest))
