"""The SQLite log's tables and the statements that read them; writing is ``store_sqlite_writer``'s.

Entries lie in the order they were written, so that a group commit fills pages one after the other: keyed by (user,
offset) directly, every entry would dirty a page of its own (measured: 7 µs against 14 µs an entry with 100 users, 5
against 25 with 1000). A unique index on ``key``, user and offset in one integer, finds them again.

The last numbers of producers, the last offsets of runs and the tops of users are not written with every append: rows
hold them as of the user's ``saved`` offset, and the entries after it say the rest (``load_user``).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from services.bridge.models import Entry, Position
from services.bridge.store_rules import MAX_OFFSET, ProducerState, RunState, UserState

__all__ = [
    "APPLICATION_ID",
    "MAX_UID",
    "OFFSET_BITS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "entry_id_at",
    "insert_entries",
    "load_producer",
    "load_run",
    "load_user",
    "open_reader",
    "open_writer",
    "read_entries",
    "read_position",
]

APPLICATION_ID: Final = 0x4341524C  # "CARL": a file with another number is somebody else's
SCHEMA_VERSION: Final = 1
OFFSET_BITS: Final = MAX_OFFSET.bit_length()
MAX_UID: Final = (1 << (63 - OFFSET_BITS)) - 1

SCHEMA: Final = """
CREATE TABLE users (
    uid INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
    oldest INTEGER NOT NULL, saved INTEGER NOT NULL, touched_ms INTEGER NOT NULL
);
CREATE TABLE runs (
    uid INTEGER NOT NULL, run_id TEXT NOT NULL, thread_id TEXT NOT NULL, fence INTEGER NOT NULL,
    first_offset INTEGER NOT NULL, last_offset INTEGER NOT NULL, sealed_ms INTEGER, touched_ms INTEGER NOT NULL,
    producers_kept INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (uid, run_id)
) WITHOUT ROWID;
CREATE INDEX runs_to_sweep ON runs (sealed_ms) WHERE sealed_ms IS NOT NULL AND producers_kept = 1;
CREATE TABLE producers (
    pid INTEGER PRIMARY KEY, uid INTEGER NOT NULL, producer_id TEXT NOT NULL, run_id TEXT NOT NULL,
    last_number INTEGER NOT NULL, UNIQUE (uid, producer_id)
);
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, key INTEGER NOT NULL, at_ms INTEGER NOT NULL, pid INTEGER NOT NULL,
    number INTEGER NOT NULL, event_id TEXT NOT NULL, blob BLOB NOT NULL
);
CREATE UNIQUE INDEX entries_key ON entries (key);
CREATE TABLE probe (at_ms INTEGER NOT NULL, filler BLOB NOT NULL);
INSERT INTO probe VALUES (0, zeroblob(1));
"""

_PRAGMAS: Final = """
PRAGMA cache_size = -16000;
PRAGMA temp_store = MEMORY;
PRAGMA wal_autocheckpoint = 16000;
PRAGMA journal_size_limit = 134217728;
"""
_BUSY_S: Final = 2.0
_ROW: Final = "(?,?,?,?,?,?)"
_INSERT: Final = "INSERT INTO entries (key, at_ms, pid, number, event_id, blob) VALUES "
_STATEMENTS: Final[dict[int, str]] = {}


def open_writer(path: Path, synchronous: str) -> sqlite3.Connection:
    """The one writing connection, the tables made if the file is new.

    Raises:
        sqlite3.Error: The file cannot be opened or written, or is no event log.
    """
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, cached_statements=2 * 128, check_same_thread=False
    )
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if objects and (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"not an event log of version {SCHEMA_VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(_PRAGMAS)
        if not objects:
            connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
                f"{SCHEMA} COMMIT;"
            )
        connection.execute("UPDATE probe SET at_ms = at_ms")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read and, thanks to WAL, waits for nobody."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def insert_entries(rows: int) -> str:
    """One INSERT of that many entries: the interpreter's lock is then given up once, not once per row."""
    statement = _STATEMENTS.get(rows)
    if statement is None:
        statement = _STATEMENTS[rows] = _INSERT + ",".join([_ROW] * rows)
    return statement


def load_user(connection: sqlite3.Connection, user: str) -> UserState | None:
    """The user's log as its rows and the entries after them say; only runs and producers found there are loaded."""
    row = connection.execute("SELECT uid, epoch, oldest, saved FROM users WHERE user = ?", (user,)).fetchone()
    if row is None:
        return None
    uid, epoch, oldest, saved = row
    state = UserState(user, epoch, uid=uid, top=saved, oldest=oldest)
    base = uid << OFFSET_BITS
    producers: dict[int, ProducerState] = {}
    tail = connection.execute(
        "SELECT key, pid, number FROM entries WHERE key > ? AND key <= ? ORDER BY key",
        (base | saved, base | MAX_OFFSET),
    )
    for key, pid, number in tail:
        producer = producers.get(pid)
        if producer is None:
            producer = producers[pid] = _producer_by_pid(connection, state, pid)
        state.top = producer.run.last_offset = key - base
        producer.last_number = number
    return state


def load_run(connection: sqlite3.Connection, state: UserState, run_id: str) -> RunState | None:
    """The run's row, now a part of ``state``; right only if ``load_user`` did not meet the run."""
    row = connection.execute(
        "SELECT thread_id, fence, first_offset, last_offset, sealed_ms FROM runs WHERE uid = ? AND run_id = ?",
        (state.uid, run_id),
    ).fetchone()
    if row is None:
        return None
    run = state.runs[run_id] = RunState(run_id, row[0], row[1], row[2])
    run.last_offset, run.sealed_at = row[3], row[4]
    return run


def load_producer(connection: sqlite3.Connection, state: UserState, producer_id: str) -> ProducerState | None:
    """The producer's row with its run, now a part of ``state``; right only if ``load_user`` did not meet it."""
    row = connection.execute(
        "SELECT pid, run_id, last_number FROM producers WHERE uid = ? AND producer_id = ?", (state.uid, producer_id)
    ).fetchone()
    return _attach(connection, state, row[0], producer_id, row[1], row[2]) if row else None


def read_position(connection: sqlite3.Connection, user: str) -> tuple[int, Position] | None:
    """The user's short key and position, without loading the rest; None when there is no such log."""
    row = connection.execute("SELECT uid, epoch, oldest, saved FROM users WHERE user = ?", (user,)).fetchone()
    if row is None:
        return None
    uid, epoch, oldest, saved = row
    base = uid << OFFSET_BITS
    newest = connection.execute(
        "SELECT key, event_id FROM entries WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1",
        (base, base | MAX_OFFSET),
    ).fetchone()
    if newest is None:
        return uid, Position(epoch, saved, oldest)
    return uid, Position(epoch, newest[0] - base, oldest, newest[1])


def read_entries(connection: sqlite3.Connection, uid: int, after: int, limit: int, max_bytes: int) -> tuple[Entry, ...]:
    """Entries above ``after``, at most ``limit``, none further once ``max_bytes`` are reached."""
    base = uid << OFFSET_BITS
    entries: list[Entry] = []
    size = 0
    rows = connection.execute(
        "SELECT key, event_id, blob FROM entries WHERE key > ? AND key <= ? ORDER BY key LIMIT ?",
        (base | min(after, MAX_OFFSET), base | MAX_OFFSET, limit),
    )
    for key, event_id, blob in rows:
        entries.append(Entry(key - base, event_id, blob))
        size += len(blob)
        if size >= max_bytes:
            break
    return tuple(entries)


def entry_id_at(connection: sqlite3.Connection, uid: int, offset: int) -> str | None:
    """The event_id of one entry; None when it is not there."""
    row = connection.execute("SELECT event_id FROM entries WHERE key = ?", (uid << OFFSET_BITS | offset,)).fetchone()
    return row[0] if row else None


def _producer_by_pid(connection: sqlite3.Connection, state: UserState, pid: int) -> ProducerState:
    row = connection.execute("SELECT producer_id, run_id, last_number FROM producers WHERE pid = ?", (pid,)).fetchone()
    if row is None:
        raise sqlite3.DatabaseError(f"entries name producer {pid}, which is not there")
    return _attach(connection, state, pid, *row)


def _attach(
    connection: sqlite3.Connection, state: UserState, pid: int, producer_id: str, run_id: str, last_number: int
) -> ProducerState:
    run = state.runs.get(run_id) or load_run(connection, state, run_id)
    if run is None:
        raise sqlite3.DatabaseError(f"producer {pid} names a run that is not there")
    producer = state.producers[producer_id] = ProducerState(producer_id, run, last_number, pid)
    return producer
