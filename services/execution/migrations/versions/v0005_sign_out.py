"""Logins that were signed out, and which keys fields may be sealed with. Only adds.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "signed_out",
        sa.Column("login", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("login", name=op.f("pk_signed_out")),
    )
    op.create_index(op.f("ix_signed_out_user_id"), "signed_out", ["user_id"], unique=False)
    op.create_index(op.f("ix_signed_out_recorded_at_login"), "signed_out", ["recorded_at", "login"], unique=False)
    op.create_index(op.f("ix_signed_out_expires_at"), "signed_out", ["expires_at"], unique=False)
    op.create_table(
        "sealing_keys",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_sealing_keys")),
    )


def downgrade() -> None:
    """Take it all away again."""
    op.drop_table("sealing_keys")
    op.drop_table("signed_out")
