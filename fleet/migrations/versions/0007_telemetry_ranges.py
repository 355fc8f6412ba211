"""What a record overlaps is found without reading all of a device's records."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("ix_telemetry_range", "telemetry", ["device", "boot", "stream", "seq"])
