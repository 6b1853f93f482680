"""Runs that wait: for their turn, for a person; the rate of a user's runs; budgets for models. Only adds.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COUNTS = {
    "users": ("rate_level", "rate_at", "served_at"),
    "threads": ("last_seq",),
    "runs": ("place", "queued_at", "time_left", "max_active_total"),
    "stages": ("lost",),
}


def upgrade() -> None:
    """Add columns with defaults that suit the rows there are, and two tables."""
    for table, names in _COUNTS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("runs", sa.Column("max_engines", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("runs", sa.Column("bound", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("runs", sa.Column("waiting_input", sa.String(length=128), server_default="", nullable=False))
    op.create_table(
        "inputs",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("input_id", sa.String(length=128), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stage_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("schema_json", sa.LargeBinary(), nullable=False),
        sa.Column("arguments_hash", sa.String(length=64), server_default="", nullable=False),
        sa.Column("tool_name", sa.String(length=128), server_default="", nullable=False),
        sa.Column("arguments", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("user_id", "run_id", "input_id", name=op.f("pk_inputs")),
    )
    op.create_index(op.f("ix_inputs_expires_at"), "inputs", ["expires_at"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ends_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("used", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "starts_at", "ends_at", name=op.f("pk_budgets")),
    )
    op.create_index(op.f("ix_budgets_ends_at"), "budgets", ["ends_at"], unique=False)


def downgrade() -> None:
    """Take it all away again."""
    op.drop_table("budgets")
    op.drop_table("inputs")
    op.drop_column("runs", "waiting_input")
    op.drop_column("runs", "bound")
    op.drop_column("runs", "max_engines")
    for table, names in _COUNTS.items():
        for name in names:
            op.drop_column(table, name)
