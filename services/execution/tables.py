"""The tables, in SQLAlchemy Core, for SQLite and PostgreSQL alike. Statements are in the stores, history in migrations.

Every key begins with the user. Times are microseconds since the epoch; JSON is kept as the bytes that came, since the
database never looks into it. Rows of a run share its key, so that deleting a thread is a handful of statements.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from services.execution.store_sql_columns import DbNow, LongWords, Words

__all__ = [
    "METADATA",
    "DbNow",
    "artifact_bytes",
    "artifacts",
    "audit",
    "budgets",
    "claims",
    "client_refs",
    "engines",
    "inputs",
    "journal",
    "keepers",
    "memories",
    "messages",
    "outbox",
    "owners",
    "revocations",
    "runs",
    "schema_revision",
    "sealing_keys",
    "signed_out",
    "stages",
    "threads",
    "users",
]

METADATA: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _id(name: str, *, key: bool = True, length: int = 128) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), primary_key=key, nullable=False)


def _text(name: str, length: int = 128) -> sa.Column[str]:
    return sa.Column(name, Words(length), nullable=False, server_default="")


def _time(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _json(name: str, *, nullable: bool = True) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=nullable)


def _number(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _count(name: str, before: int = 0) -> sa.Column[int]:
    """A number that rows of older processes have as ``before``."""
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=str(before))


# One row per user, locked by whatever makes one of that user's engines active.
users = sa.Table(
    "users",
    METADATA,
    _id("user_id"),
    _time("created_at"),
    # The rate's bucket: millionths of a run, as they were at a time.
    _count("rate_level"),
    _count("rate_at"),
    # When a run of the user's last had its turn in the queue.
    _count("served_at"),
)

threads = sa.Table(
    "threads",
    METADATA,
    _id("user_id"),
    _id("thread_id"),
    _time("created_at"),
    _time("updated_at"),
    _number("message_count"),
    # The highest number that a message ever had: removing messages does not lower it. 0 in rows of the first schema,
    # where ``message_count`` says it.
    _count("last_seq"),
    sa.Index(None, "user_id", "updated_at", "thread_id"),
)

messages = sa.Table(
    "messages",
    METADATA,
    _id("user_id"),
    _id("thread_id"),
    _number("seq", key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("text", LongWords, nullable=False),
    _id("run_id", key=False),
    _time("created_at"),
)

# What an agent keeps from one run of a thread to the next; it counts once the run has succeeded. The bytes come last:
# what is before them is read without them.
memories = sa.Table(
    "memories",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("agent_name"),
    _id("thread_id", key=False),
    _number("size"),
    _time("kept_at"),
    _json("data", nullable=False),
    sa.Index(None, "user_id", "thread_id", "agent_name"),
)

runs = sa.Table(
    "runs",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("thread_id", key=False),
    _id("request_id", key=False, length=512),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("outcome", sa.String(16)),
    _text("agent_name"),
    sa.Column("message", LongWords, nullable=False),
    _json("params", nullable=False),
    _text("strategy", 16),
    _text("client_ref"),
    _text("content_hash", 64),
    # What the run's tickets are minted from: permissions, limits and the context's own values, as verified.
    _json("identity", nullable=False),
    _json("result"),
    _json("error"),
    _text("engine_id"),
    # The agent_instance that its stages run on.
    _text("agent_instance", 256),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    _time("deadline_at"),
    # The process that drives it, and how often that changed. Until when, its row in ``owners`` says;
    # ``lease_expires_at`` is of processes before 0004 and no longer read.
    _text("lease_owner", 64),
    _time("lease_expires_at"),
    _number("fence"),
    # Whether it ends when its caller goes away.
    sa.Column("bound", sa.Boolean, nullable=False, server_default=sa.false()),
    # Its place among the unended runs of its thread; since when it is QUEUED; the engine time that waiting left of it.
    _count("place"),
    _count("queued_at"),
    _count("time_left"),
    # The limits it was admitted under, for when it begins later; at least one engine, lest it never begins.
    _count("max_engines", 1),
    _count("max_active_total"),
    # The open question while it is WAITING.
    _text("waiting_input"),
    sa.Index(None, "user_id", "created_at", "run_id"),
    sa.Index(None, "user_id", "thread_id"),
    sa.Index(None, "user_id", "state"),
    sa.Index(None, "state", "lease_owner"),
)

stages = sa.Table(
    "stages",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _number("stage_index", key=True),
    _id("agent_name", key=False),
    sa.Column("state", sa.String(16), nullable=False),
    _number("attempt"),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    _text("answered_by"),
    # The checkpoint: what the stages after it start from.
    _json("result"),
    # Attempts that were lost with their worker or agent_instance.
    _count("lost"),
)

# Questions to a person and their answers; they go when the run is closed.
inputs = sa.Table(
    "inputs",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("input_id"),
    _number("number"),
    _number("stage_index"),
    sa.Column("prompt", LongWords, nullable=False),
    _json("schema_json", nullable=False),
    _text("arguments_hash", 64),
    _text("tool_name"),
    _json("arguments", nullable=False),
    _json("value"),
    _time("asked_at"),
    _time("expires_at"),
    _time("answered_at", nullable=True),
    sa.Index(None, "expires_at"),
)

# A row is there exactly as long as the engine counts against its user's limit.
engines = sa.Table(
    "engines",
    METADATA,
    _id("user_id"),
    _id("engine_id"),
    _text("run_id"),
    _time("created_at"),
    _time("expires_at"),
    sa.Index(None, "expires_at"),
)

client_refs = sa.Table(
    "client_refs",
    METADATA,
    _id("user_id"),
    _id("client_ref"),
    _id("run_id", key=False),
    _text("content_hash", 64),
    _time("created_at"),
    sa.Index(None, "created_at"),
)

# A run's own events, written in the transaction that caused them; they go when the log has the terminal one.
outbox = sa.Table(
    "outbox",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _number("number", key=True),
    _id("event_id", key=False),
    _text("event_type", 64),
    _text("agent_name"),
    _json("data", nullable=False),
    _time("created_at"),
)

journal = sa.Table(
    "journal",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _number("stage_index", key=True),
    _number("number", key=True),
    _text("call_id", 512),
    _text("kind", 16),
    _text("name", 256),
    _text("arguments_hash", 64),
    _json("result", nullable=False),
    _json("error"),
)

# Model tokens that a user has used in a period.
budgets = sa.Table(
    "budgets",
    METADATA,
    _id("user_id"),
    _number("starts_at", key=True),
    _number("ends_at", key=True),
    _number("used"),
    sa.Index(None, "ends_at"),
)

# Names that are given once, whoever asks first; kept until what they stand for is worthless.
claims = sa.Table(
    "claims",
    METADATA,
    _id("name", length=256),
    _time("expires_at"),
    sa.Index(None, "expires_at"),
)

# Users whose logins and tickets from before a moment are worth nothing.
revocations = sa.Table(
    "revocations",
    METADATA,
    _id("user_id"),
    _number("not_before"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index(None, "not_before"),
)

# Logins that ended before their time, until they end by themselves.
signed_out = sa.Table(
    "signed_out",
    METADATA,
    _id("login", length=64),
    _id("user_id", key=False),
    _time("recorded_at"),
    _time("expires_at"),
    sa.Index(None, "user_id"),
    sa.Index(None, "recorded_at", "login"),
    sa.Index(None, "expires_at"),
)

# The keys that fields may be sealed with, each with a proof by which another key of that name is found out.
sealing_keys = sa.Table(
    "sealing_keys",
    METADATA,
    _id("key_id", length=64),
    _json("proof", nullable=False),
    _time("created_at"),
)

artifacts = sa.Table(
    "artifacts",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("name", length=255),
    _text("media_type", 255),
    _number("size"),
    _text("sha256", 64),
    _time("created_at"),
    sa.Index(None, "created_at"),
)

# The bytes of artifacts, where no folder is shared. One row for each content of a run.
artifact_bytes = sa.Table(
    "artifact_bytes",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("sha256", length=64),
    _json("data", nullable=False),
)

# The processes that hold runs, and until when on the database's clock: one row to renew, however many runs they hold.
owners = sa.Table(
    "owners",
    METADATA,
    _id("owner", length=64),
    _time("expires_at"),
)

# Which processes have a caller that keeps a bound run alive.
keepers = sa.Table(
    "keepers",
    METADATA,
    _id("user_id"),
    _id("run_id"),
    _id("owner", length=64),
)

audit = sa.Table(
    "audit",
    METADATA,
    _id("user_id"),
    _id("record_id"),
    _text("thread_id"),
    _text("run_id"),
    _text("request_id", 512),
    _text("action", 64),
    _text("target", 256),
    _text("outcome", 16),
    _time("started_at"),
    _number("duration_us"),
    _text("error_code", 64),
    _text("arguments_hash", 64),
    _text("agent_name"),
    sa.Index(None, "user_id", "started_at", "record_id"),
    sa.Index(None, "started_at", "user_id", "record_id"),
    sa.Index(None, "user_id", "run_id"),
)

# One row: the revision that all this is at. See migrations.
schema_revision = sa.Table(
    "schema_revision",
    METADATA,
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="schema_revision_pkc"),
)
