"""The tables. Times are RFC 3339 text in UTC, which sorts as time; documents are the JSON they came as.

A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import Text, UniqueConstraint
from sqlmodel import Field, SQLModel


class Device(SQLModel, table=True):
    """A device from the making of its kit on. `certificate` is empty until it enrolled."""

    id: str = Field(primary_key=True)
    profile: str
    created: str
    request_key: str | None = None
    token_hash: str
    token_expires: str
    token_used: bool = False
    enrolled: str | None = None
    certificate: str = Field(default="", sa_type=Text)
    online: bool = False
    session: str = ""
    last_seen: str | None = None
    reported: str = Field(default="", sa_type=Text)
    desired_epoch: int = 0
    desired_seq: int = 0
    desired_expires: str = ""
    desired_models: str = Field(default="[]", sa_type=Text)
    desired_envelope: str = Field(default="", sa_type=Text)


class DeviceStats(SQLModel, table=True):
    """Sums over all stored telemetry of a device, kept in the transaction that stores it."""

    __tablename__ = "device_stats"

    device: str = Field(primary_key=True, foreign_key="device.id")
    requests: int = 0
    errors: int = 0
    latency: str = Field(default="{}", sa_type=Text)
    feedback_total: int = 0
    feedback_correct: int = 0
    records: int = 0
    duplicates: int = 0
    health: str = Field(default="", sa_type=Text)


class TelemetryRow(SQLModel, table=True):
    """One telemetry record. `(device, boot, seq)` names it for ever, so it is stored once."""

    __tablename__ = "telemetry"
    __table_args__ = (UniqueConstraint("device", "boot", "seq", name="telemetry_once"),)

    id: int | None = Field(default=None, primary_key=True)
    device: str = Field(foreign_key="device.id")
    boot: str
    seq: int
    received: str
    record: str = Field(sa_type=Text)


class SecurityRow(SQLModel, table=True):
    """Something that the fleet refused from a device because it could not be trusted."""

    __tablename__ = "security_event"

    id: int | None = Field(default=None, primary_key=True)
    device: str = Field(index=True)
    at: str
    subject: str
    reason: str = Field(sa_type=Text)


class TrustRow(SQLModel, table=True):
    """One document of the signed metadata as it is published, `root/<version>` or a role's name."""

    __tablename__ = "trust_document"

    name: str = Field(primary_key=True)
    document: str = Field(sa_type=Text)


class EvidenceRow(SQLModel, table=True):
    """The newest evidence of a bundle, by the digest of its manifest."""

    __tablename__ = "evidence"

    subject: str = Field(primary_key=True)
    digest: str
    document: str = Field(sa_type=Text)


class RolloutRow(SQLModel, table=True):
    """A rollout; `waves` and `reasons` are JSON lists."""

    __tablename__ = "rollout"

    id: str = Field(primary_key=True)
    request_key: str | None = Field(default=None, unique=True)
    family: str
    name: str
    version: str
    waves: str
    wave: int
    state: str = Field(index=True)
    verdict: str
    reasons: str = Field(sa_type=Text)
    started: str
    wave_started: str


class RolloutDevice(SQLModel, table=True):
    """A device of a rollout, what it gets, and what it should go back to (`before`: a desired model or empty)."""

    __tablename__ = "rollout_device"

    rollout: str = Field(primary_key=True, foreign_key="rollout.id")
    device: str = Field(primary_key=True, foreign_key="device.id")
    target: str
    digest: str
    wave: int
    state: str
    reason: str = Field(default="", sa_type=Text)
    before: str = Field(default="", sa_type=Text)
    sent_seq: int = 0


class OperatorToken(SQLModel, table=True):
    """A token of an operator: only its SHA-256 is kept."""

    __tablename__ = "operator_token"

    sha256: str = Field(primary_key=True)
    name: str
    created: str
