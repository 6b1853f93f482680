"""Names that are given once, and users whose logins were revoked. Only adds.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "claims",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_claims")),
    )
    op.create_index(op.f("ix_claims_expires_at"), "claims", ["expires_at"], unique=False)
    op.create_table(
        "revocations",
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("not_before", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_revocations")),
    )
    op.create_index(op.f("ix_revocations_not_before"), "revocations", ["not_before"], unique=False)


def downgrade() -> None:
    """Take it all away again."""
    op.drop_table("revocations")
    op.drop_table("claims")
