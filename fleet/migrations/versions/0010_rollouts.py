"""Rollouts with terms, their history and their profiles; tags of devices; the lease."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "device_tag",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "tag"),
    )
    op.create_index("ix_device_tag_tag", "device_tag", ["tag"])
    op.create_table(
        "rollout_profile",
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("reasons", "numbers", "history")),
        sa.Column("judged", sa.String(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("rollout", "profile"),
    )
    op.create_table(
        "rollout_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout", sa.String(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=True),
        sa.Column("profile", sa.String(), nullable=True),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rollout_event_device", "rollout_event", ["device", "id"])
    op.create_index("ix_rollout_event_rollout", "rollout_event", ["rollout", "id"])
    lease = op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("term", sa.Integer(), nullable=False),
        sa.Column("expires", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(lease, [{"name": "rollouts", "holder": "", "term": 0, "expires": ""}])
    _widen()
    _carry_over()


def _widen() -> None:
    op.add_column("rollout", sa.Column("terms", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("rollout", sa.Column("asked", sa.Text(), nullable=False, server_default=""))
    op.add_column("rollout", sa.Column("created", sa.String(), nullable=False, server_default=""))
    op.add_column("rollout", sa.Column("created_by", sa.String(), nullable=False, server_default=""))
    op.add_column("rollout", sa.Column("approved_by", sa.String(), nullable=False, server_default=""))
    op.add_column("rollout", sa.Column("settled", sa.String(), nullable=True))
    op.add_column("rollout", sa.Column("eligible", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("rollout_device", sa.Column("profile", sa.String(), nullable=False, server_default=""))
    op.add_column("rollout_device", sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("rollout_device", sa.Column("admitted", sa.String(), nullable=False, server_default=""))
    op.add_column("rollout_device", sa.Column("committed", sa.String(), nullable=True))


def _carry_over() -> None:
    """Rollouts of before: only installing counted, and who waits for a turn has no row any more."""
    connection = op.get_bind()
    for id_, waves, started in connection.execute(sa.text("SELECT id, waves, started FROM rollout")).all():
        values = {
            "id": id_,
            "terms": json.dumps({"waves": [f"{share}%" for share in json.loads(waves)], "gates": "install"}),
            "started": started,
        }
        connection.execute(sa.text("UPDATE rollout SET terms = :terms, created = :started WHERE id = :id"), values)
        connection.execute(sa.text("UPDATE rollout_device SET admitted = :started WHERE rollout = :id"), values)
        connection.execute(
            sa.text("UPDATE rollout_device SET committed = :started WHERE rollout = :id AND state = 'committed'"), values
        )
    connection.execute(sa.text("DELETE FROM rollout_device WHERE state = 'waiting'"))
    connection.execute(
        sa.text(
            "UPDATE rollout SET eligible = (SELECT count(*) FROM rollout_device WHERE rollout_device.rollout = rollout.id)"
        )
    )
    connection.execute(
        sa.text(
            "UPDATE rollout_device SET profile = "
            "(SELECT device.profile FROM device WHERE device.id = rollout_device.device)"
        )
    )
