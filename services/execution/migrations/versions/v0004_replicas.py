"""Several processes on one database: their leases, callers that keep runs alive, the bytes of artifacts. Only adds.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add three tables. Leases of before count as expired: no older process may run beside this one."""
    op.create_table(
        "artifact_bytes",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", "sha256", name=op.f("pk_artifact_bytes")),
    )
    op.create_table(
        "owners",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_owners")),
    )
    op.create_table(
        "keepers",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "run_id", "owner", name=op.f("pk_keepers")),
    )
    op.create_index(op.f("ix_runs_state_lease_owner"), "runs", ["state", "lease_owner"], unique=False)
    op.drop_index(op.f("ix_runs_state_lease_expires_at"), table_name="runs")


def downgrade() -> None:
    """Take it all away again."""
    op.create_index(op.f("ix_runs_state_lease_expires_at"), "runs", ["state", "lease_expires_at"], unique=False)
    op.drop_index(op.f("ix_runs_state_lease_owner"), table_name="runs")
    op.drop_table("keepers")
    op.drop_table("owners")
    op.drop_table("artifact_bytes")
