"""What devices see and say, and whether that drifts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "drift_look",
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("look", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("window", "digest", "device"),
    )
    op.create_index("ix_drift_look_device", "drift_look", ["device", "window"])
    op.create_table(
        "drift_past",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("look", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("digest", "device"),
    )
    op.create_index("ix_drift_past_window", "drift_past", ["window"])
    op.create_table(
        "drift_day",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("stratum", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("calm", sa.Boolean(), nullable=False),
        sa.Column("look", sa.Text(), nullable=False),
        sa.Column("scores", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "stratum", "window"),
    )
    op.create_index("ix_drift_day_window", "drift_day", ["window"])
    op.create_table(
        "drift_alarm",
        sa.Column("id", sa.Integer(), primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("digest", "model", "stratum", "subject")),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("against", "state", "signs", "first", "last")),
        sa.Column("ended", sa.String(), nullable=True),
        sa.Column("score", sa.Text(), nullable=False),
    )
    op.create_index("ix_drift_alarm_state", "drift_alarm", ["state"])
    op.create_index("ix_drift_alarm_digest", "drift_alarm", ["digest"])
