"""What agents keep from one run of a thread to the next. Only adds.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "memories",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("agent_name", sa.String(length=128), nullable=False),
        sa.Column("thread_id", sa.String(length=128), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("kept_at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", "agent_name", name=op.f("pk_memories")),
    )
    op.create_index(
        op.f("ix_memories_user_id_thread_id_agent_name"), "memories", ["user_id", "thread_id", "agent_name"]
    )


def downgrade() -> None:
    """Take it away again."""
    op.drop_table("memories")
