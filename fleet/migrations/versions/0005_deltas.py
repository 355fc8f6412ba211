"""Deltas between two blobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "delta",
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("blob", sa.String(), nullable=False),
        sa.Column("lacking", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("delta", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("chunks", sa.String(), nullable=True),
        sa.Column("chunks_size", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("used", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("base", "blob"),
    )
    op.create_index("ix_delta_state", "delta", ["state"])
