"""The first schema.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "artifacts",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("media_type", sa.String(length=255), server_default="", nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sha256", sa.String(length=64), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", "name", name=op.f("pk_artifacts")),
    )
    op.create_index(op.f("ix_artifacts_created_at"), "artifacts", ["created_at"], unique=False)
    op.create_table(
        "audit",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("record_id", sa.String(length=128), nullable=False),
        sa.Column("thread_id", sa.String(length=128), server_default="", nullable=False),
        sa.Column("run_id", sa.String(length=128), server_default="", nullable=False),
        sa.Column("request_id", sa.String(length=512), server_default="", nullable=False),
        sa.Column("action", sa.String(length=64), server_default="", nullable=False),
        sa.Column("target", sa.String(length=256), server_default="", nullable=False),
        sa.Column("outcome", sa.String(length=16), server_default="", nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("duration_us", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("error_code", sa.String(length=64), server_default="", nullable=False),
        sa.Column("arguments_hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("agent_name", sa.String(length=128), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("user_id", "record_id", name=op.f("pk_audit")),
    )
    op.create_index(
        op.f("ix_audit_started_at_user_id_record_id"), "audit", ["started_at", "user_id", "record_id"], unique=False
    )
    op.create_index(op.f("ix_audit_user_id_run_id"), "audit", ["user_id", "run_id"], unique=False)
    op.create_index(
        op.f("ix_audit_user_id_started_at_record_id"), "audit", ["user_id", "started_at", "record_id"], unique=False
    )
    op.create_table(
        "client_refs",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("client_ref", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("content_hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "client_ref", name=op.f("pk_client_refs")),
    )
    op.create_index(op.f("ix_client_refs_created_at"), "client_refs", ["created_at"], unique=False)
    op.create_table(
        "engines",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("engine_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "engine_id", name=op.f("pk_engines")),
    )
    op.create_index(op.f("ix_engines_expires_at"), "engines", ["expires_at"], unique=False)
    op.create_table(
        "journal",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("stage_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("call_id", sa.String(length=512), server_default="", nullable=False),
        sa.Column("kind", sa.String(length=16), server_default="", nullable=False),
        sa.Column("name", sa.String(length=256), server_default="", nullable=False),
        sa.Column("arguments_hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", "run_id", "stage_index", "number", name=op.f("pk_journal")),
    )
    op.create_table(
        "messages",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("thread_id", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "thread_id", "seq", name=op.f("pk_messages")),
    )
    op.create_table(
        "outbox",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=128), nullable=False),
        sa.Column("event_type", sa.String(length=64), server_default="", nullable=False),
        sa.Column("agent_name", sa.String(length=128), server_default="", nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", "number", name=op.f("pk_outbox")),
    )
    op.create_table(
        "runs",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("thread_id", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=512), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("agent_name", sa.String(length=128), server_default="", nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("params", sa.LargeBinary(), nullable=False),
        sa.Column("strategy", sa.String(length=16), server_default="", nullable=False),
        sa.Column("client_ref", sa.String(length=128), server_default="", nullable=False),
        sa.Column("content_hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("identity", sa.LargeBinary(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("engine_id", sa.String(length=128), server_default="", nullable=False),
        sa.Column("agent_instance", sa.String(length=256), server_default="", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.String(length=64), server_default="", nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_state_lease_expires_at"), "runs", ["state", "lease_expires_at"], unique=False)
    op.create_index(
        op.f("ix_runs_user_id_created_at_run_id"), "runs", ["user_id", "created_at", "run_id"], unique=False
    )
    op.create_index(op.f("ix_runs_user_id_state"), "runs", ["user_id", "state"], unique=False)
    op.create_index(op.f("ix_runs_user_id_thread_id"), "runs", ["user_id", "thread_id"], unique=False)
    op.create_table(
        "stages",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("stage_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("agent_name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("answered_by", sa.String(length=128), server_default="", nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", "run_id", "stage_index", name=op.f("pk_stages")),
    )
    op.create_table(
        "threads",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("thread_id", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("message_count", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "thread_id", name=op.f("pk_threads")),
    )
    op.create_index(
        op.f("ix_threads_user_id_updated_at_thread_id"), "threads", ["user_id", "updated_at", "thread_id"], unique=False
    )
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_users")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("users")
    op.drop_table("threads")
    op.drop_table("stages")
    op.drop_table("runs")
    op.drop_table("outbox")
    op.drop_table("messages")
    op.drop_table("journal")
    op.drop_table("engines")
    op.drop_table("client_refs")
    op.drop_table("audit")
    op.drop_table("artifacts")
