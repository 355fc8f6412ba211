"""Streams and ledgers of telemetry, and what came of commands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("telemetry", sa.Column("stream", sa.String(), nullable=False, server_default="inference"))
    op.add_column("telemetry", sa.Column("first", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE telemetry SET first = seq")
    op.create_index("ix_telemetry_stream", "telemetry", ["device", "stream", "id"])
    op.create_table(
        "telemetry_ledger",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("stream", sa.String(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.Column("merged", sa.Integer(), nullable=False),
        sa.Column("memory", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("offset", sa.Integer(), nullable=False),
        sa.Column("merged_before", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "stream"),
    )
    op.execute(
        "INSERT INTO telemetry_ledger SELECT device, 'inference', COUNT(*), 0, '', 0, 0, 0, 0, '', ''"
        " FROM telemetry GROUP BY device"
    )
    op.create_table(
        "command",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("issued", sa.String(), nullable=False),
        sa.Column("expires", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("ended", sa.String(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "epoch", "seq"),
    )
