"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "device",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.Column("request_key", sa.String(), nullable=True),
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("token_expires", sa.String(), nullable=False),
        sa.Column("token_used", sa.Boolean(), nullable=False),
        sa.Column("enrolled", sa.String(), nullable=True),
        sa.Column("certificate", sa.Text(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("session", sa.String(), nullable=False),
        sa.Column("last_seen", sa.String(), nullable=True),
        sa.Column("reported", sa.Text(), nullable=False),
        sa.Column("desired_epoch", sa.Integer(), nullable=False),
        sa.Column("desired_seq", sa.Integer(), nullable=False),
        sa.Column("desired_expires", sa.String(), nullable=False),
        sa.Column("desired_models", sa.Text(), nullable=False),
        sa.Column("desired_envelope", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "evidence",
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "operator_token",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("request_key", sa.String(), nullable=True),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("waves", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("started", sa.String(), nullable=False),
        sa.Column("wave_started", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("request_key"),
    )
    op.create_index(op.f("ix_rollout_state"), "rollout", ["state"], unique=False)
    op.create_table(
        "security_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_security_event_device"), "security_event", ["device"], unique=False)
    op.create_table(
        "trust_document",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "device_stats",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("latency", sa.Text(), nullable=False),
        sa.Column("feedback_total", sa.Integer(), nullable=False),
        sa.Column("feedback_correct", sa.Integer(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("health", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device"],
            ["device.id"],
        ),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "rollout_device",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("sent_seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device"],
            ["device.id"],
        ),
        sa.ForeignKeyConstraint(
            ["rollout"],
            ["rollout.id"],
        ),
        sa.PrimaryKeyConstraint("rollout", "device"),
    )
    op.create_table(
        "telemetry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("received", sa.String(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device"],
            ["device.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device", "boot", "seq", name="telemetry_once"),
    )


def downgrade() -> None:
    op.drop_table("telemetry")
    op.drop_table("rollout_device")
    op.drop_table("device_stats")
    op.drop_table("trust_document")
    op.drop_index(op.f("ix_security_event_device"), table_name="security_event")
    op.drop_table("security_event")
    op.drop_index(op.f("ix_rollout_state"), table_name="rollout")
    op.drop_table("rollout")
    op.drop_table("operator_token")
    op.drop_table("evidence")
    op.drop_table("device")
