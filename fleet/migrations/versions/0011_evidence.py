"""Evidence in windows; what was stored of telemetry as ranges, so that raw records may go; numbers of 64 bits."""

from __future__ import annotations

import json
from bisect import bisect_left
from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

EXACT = 24
BIG = {
    "device": ("desired_epoch", "desired_seq", "ack_seq", "batch_starts", "batch_sent", "command_seq"),
    "device_stats": ("requests", "errors", "feedback_total", "feedback_correct", "records", "duplicates"),
    "telemetry": ("id", "first", "seq"),
    "telemetry_ledger": ("stored", "merged", "epoch", "offset", "merged_before", "lost"),
    "command": ("epoch", "seq"),
    "dataset": ("size",),
    "source": ("size",),
    "delta": ("lacking", "size", "chunks_size"),
}
def upgrade() -> None:
    op.create_table(
        "telemetry_seen",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("streams", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "boot"),
    )
    op.create_index("ix_telemetry_seen_day", "telemetry_seen", ["day"])
    _note_seen()
    op.drop_index("ix_telemetry_range", "telemetry")
    op.drop_index("ix_telemetry_stream", "telemetry")
    events = sa.text("stream = 'event'")
    op.create_index(
        "ix_telemetry_event", "telemetry", ["device", "id"], sqlite_where=events, postgresql_where=events
    )
    op.create_table(
        "evidence_subject",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("newest", sa.BigInteger(), nullable=False),
        sa.Column("restarts", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device", "digest", "profile", "shadow", name="evidence_subject_once"),
    )
    of_digest = ["digest", "device", "profile", "shadow", "newest"]
    op.create_index("ix_evidence_subject_digest", "evidence_subject", of_digest)
    op.create_table(
        "evidence_golden",
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["device"], ["device.id"]),
        sa.PrimaryKeyConstraint("device", "digest"),
    )
    op.create_table(
        "evidence_hold",
        sa.Column("subject", sa.Integer(), nullable=False),
        sa.Column("begins", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "begins"),
    )
    counts = ("requests", "errors", "feedback_total", "feedback_correct", "compared", "agreed")
    op.create_table(
        "evidence_window",
        *_of_a_window(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        sa.Column("latency", sa.LargeBinary(), nullable=False),
        sa.Column("detail", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "span", "begins"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_evidence_window_age", "evidence_window", ["span", "begins"])
    op.create_table(
        "evidence_health",
        *_of_a_window(),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("samples", "memory")),
        sa.Column("temperature", sa.Float(), nullable=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("cpu_sum", "restarts")),
        sa.PrimaryKeyConstraint("subject", "span", "begins"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_evidence_health_age", "evidence_health", ["span", "begins"])
    if op.get_bind().dialect.name != "sqlite":  # there INTEGER has 64 bits
        for table, columns in BIG.items():
            for name in columns:
                op.alter_column(table, name, type_=sa.BigInteger())


def _of_a_window() -> list[sa.Column[int]]:
    return [
        sa.Column("subject", sa.Integer(), nullable=False),
        sa.Column("span", sa.Integer(), nullable=False),
        sa.Column("begins", sa.BigInteger(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
    ]


def _note_seen() -> None:
    """What the raw records say: they were all kept until now."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.text("SELECT device, boot, stream, first, seq, received FROM telemetry ORDER BY device, boot, seq")
    )
    found: dict[tuple[str, str], dict[str, tuple[int, list[tuple[int, int]]]]] = {}
    days: dict[tuple[str, str], str] = {}
    for device, boot, stream, first, seq, received in rows:
        streams = found.setdefault((device, boot), {})
        streams[stream] = _with(*streams.get(stream, (0, [])), first, seq)
        days[device, boot] = max(days.get((device, boot), ""), received)
    insert = sa.text("INSERT INTO telemetry_seen (device, boot, streams, day) VALUES (:device, :boot, :streams, :day)")
    for (device, boot), streams in found.items():
        values = {"device": device, "boot": boot, "streams": _text(streams), "day": _day(days[device, boot])}
        connection.execute(insert, values)


def _with(upto: int, ranges: list[tuple[int, int]], first: int, seq: int) -> tuple[int, list[tuple[int, int]]]:
    """What is kept of a stream with one more range: the newest as they came, the others as all that is below."""
    at = bisect_left(ranges, first, key=lambda one: one[1])
    ranges.insert(at, (first, seq))
    if len(ranges) > EXACT:
        upto = ranges.pop(0)[1]
    return upto, ranges


def _text(streams: dict[str, tuple[int, list[tuple[int, int]]]]) -> str:
    flat = {name: [upto, *(n for pair in ranges for n in pair)] for name, (upto, ranges) in streams.items()}
    return json.dumps(flat, separators=(",", ":"), ensure_ascii=False)


def _day(received: str) -> int:
    return int(datetime.fromisoformat(received).timestamp() // 86_400) if received else 0
