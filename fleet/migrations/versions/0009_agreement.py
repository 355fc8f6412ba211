"""How often answers of devices agree with the reference in the cloud."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

COUNTS = ("answers", "checked", "agreed", "right_agreed", "right_differed", "wrong_agreed", "wrong_differed")


def upgrade() -> None:
    op.create_table(
        "agreement",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("stratum", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "digest", "stratum"),
    )
    op.create_index("ix_agreement_digest", "agreement", ["digest"])
