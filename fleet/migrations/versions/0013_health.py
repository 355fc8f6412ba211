"""What freshness is judged by, notes and history of devices, alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("device", sa.Column("gone", sa.String(), nullable=True))
    op.add_column("device", sa.Column("interval_s", sa.Float(), nullable=False, server_default="0"))
    op.add_column("device", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    for name in ("inference_at", "health_at"):
        op.add_column("device_stats", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.create_table(
        "device_history",
        sa.Column("id", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("device", "at", "what")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("subject", "before", "after")),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_device_history_device", "device_history", ["device", "id"])
    op.create_table(
        "alert",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("rule", "subject", "id")),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("began", sa.String(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=True) for name in ("opened", "told", "quiet", "ended")),
        sa.Column("acknowledged", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("rule", "subject"),
    )
    op.create_table(
        "alert_silence",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("id", "rule", "subject", "until", "who")),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "alert_message",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("id", "channel", "created")),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.Column("ended", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alert_message_due", "alert_message", ["state", "due"])
