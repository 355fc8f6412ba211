"""The tables of evidence (`fleet.evidence`) and of what keeps telemetry from being counted twice (`fleet.seen`).

Times are seconds since 1970 in UTC here, so that millions of rows stay small and windows can be computed with.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel


class SeenRow(SQLModel, table=True):
    """Which records of one boot of a device were stored: JSON of `fleet.seen.Seen`. `day` is that of the last one."""

    __tablename__ = "telemetry_seen"
    __table_args__ = (Index("ix_telemetry_seen_day", "day"),)

    device: str = Field(primary_key=True, foreign_key="device.id")
    boot: str = Field(primary_key=True)
    streams: str = Field(sa_type=Text)
    day: int


class EvidenceSubject(SQLModel, table=True):
    """What windows are of: a model on a device, or on all devices of a profile (`device` empty), or a device's health.

    Of health `digest` and `profile` are empty. `newest` is the begin of its newest window. `restarts` counts those of
    the agent that nobody asked for, as it said last.
    """

    __tablename__ = "evidence_subject"
    __table_args__ = (
        UniqueConstraint("device", "digest", "profile", "shadow", name="evidence_subject_once"),
        # All that a count of a model's devices needs: ten thousand rows would be as many reads of a cold disk.
        Index("ix_evidence_subject_digest", "digest", "device", "profile", "shadow", "newest"),
    )

    id: int | None = Field(default=None, primary_key=True)
    device: str
    model: str
    digest: str
    profile: str
    shadow: bool
    newest: int = Field(sa_type=BigInteger)
    restarts: int | None = Field(default=None, sa_type=BigInteger)


class GoldenRow(SQLModel, table=True):
    """Whether the golden set of a model `held` when a device ran it last: at an installation, or in a self-test."""

    __tablename__ = "evidence_golden"

    device: str = Field(primary_key=True, foreign_key="device.id")
    digest: str = Field(primary_key=True)
    held: bool
    at: str


class HoldRow(SQLModel, table=True):
    """An hour of a subject that gates look into: its windows stay as fine as they are until nobody asks any more."""

    __tablename__ = "evidence_hold"

    subject: int = Field(primary_key=True)
    begins: int = Field(primary_key=True, sa_type=BigInteger)
    day: int
    """When it was asked for last, in days since 1970."""


class EvidenceWindow(SQLModel, table=True):
    """What a model did in the `span` seconds from `begins` on. `ends` is the end of the newest record in it.

    `latency` is a sketch as `fleet.evidence.packing` packs it; `detail` is JSON of the other distributions.
    """

    __tablename__ = "evidence_window"
    __table_args__ = (Index("ix_evidence_window_age", "span", "begins"), {"sqlite_with_rowid": False})

    subject: int = Field(primary_key=True)
    span: int = Field(primary_key=True)
    begins: int = Field(primary_key=True, sa_type=BigInteger)
    ends: int = Field(sa_type=BigInteger)
    requests: int = Field(default=0, sa_type=BigInteger)
    errors: int = Field(default=0, sa_type=BigInteger)
    feedback_total: int = Field(default=0, sa_type=BigInteger)
    feedback_correct: int = Field(default=0, sa_type=BigInteger)
    compared: int = Field(default=0, sa_type=BigInteger)
    agreed: int = Field(default=0, sa_type=BigInteger)
    latency: bytes = Field(default=b"", sa_type=LargeBinary)
    detail: bytes = Field(default=b"", sa_type=LargeBinary)


class HealthWindow(SQLModel, table=True):
    """How a device was in the `span` seconds from `begins` on: most memory of the agent, highest temperature, CPU.

    `cpu_sum` over `samples` is the mean load in hundredths of a percent. `restarts` are those that nobody asked for.
    """

    __tablename__ = "evidence_health"
    __table_args__ = (Index("ix_evidence_health_age", "span", "begins"), {"sqlite_with_rowid": False})

    subject: int = Field(primary_key=True)
    span: int = Field(primary_key=True)
    begins: int = Field(primary_key=True, sa_type=BigInteger)
    ends: int = Field(sa_type=BigInteger)
    samples: int = Field(default=0, sa_type=BigInteger)
    memory: int = Field(default=0, sa_type=BigInteger)
    temperature: float | None = None
    cpu_sum: int = Field(default=0, sa_type=BigInteger)
    restarts: int = Field(default=0, sa_type=BigInteger)
