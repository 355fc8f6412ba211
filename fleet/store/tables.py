"""The tables. Times are RFC 3339 text in UTC, which sorts as time; documents are the JSON they came as.

A change here needs a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Index, Integer, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

BIG = BigInteger().with_variant(Integer, "sqlite")
"""A number that may not fit in 32 bits, which is all that INTEGER has outside SQLite."""


def big(default: int = 0) -> Any:
    """A column of such numbers."""
    return Field(default=default, sa_type=BIG)


class Device(SQLModel, table=True):
    """A device from the making of its kit, or from the request of one of a batch, on.

    `state`: new (a kit was made), pending (of a batch, waits for an operator), rejected, enrolled, retiring, retired,
    revoked. `certificate` is the one it is known to use (PEM), `next_certificate` one that was issued to renew it and
    not seen in use yet. `request` is the PKCS#10 request of a pending device (DER, base64).
    """

    id: str = Field(primary_key=True)
    profile: str
    group: str = Field(default="default", index=True)
    state: str = Field(default="new", index=True)
    batch: str | None = None
    request: str = Field(default="", sa_type=Text)
    created: str
    request_key: str | None = None
    token_hash: str
    token_expires: str
    token_used: bool = False
    enrolled: str | None = None
    certificate: str = Field(default="", sa_type=Text)
    next_certificate: str = Field(default="", sa_type=Text)
    sealing_key: str = ""
    online: bool = False
    session: str = ""
    gone: str | None = None
    """When its will, or its absence, said that it is away; None while it is not known to be."""
    last_seen: str | None = None
    interval_s: float = 0.0
    """The length of its telemetry windows, as it says; 0 before it did."""
    note: str = Field(default="", sa_type=Text)
    reported: str = Field(default="", sa_type=Text)
    desired_epoch: int = big()
    desired_seq: int = big()
    desired_expires: str = ""
    desired_models: str = Field(default="[]", sa_type=Text)
    desired_envelope: str = Field(default="", sa_type=Text)
    ack_seq: int = big()
    batch_starts: int = big()
    batch_sent: int = big()
    command_seq: int = big()
    command_expires: str = ""
    command_envelope: str = Field(default="", sa_type=Text)
    """The newest command that was not answered yet; empty when there is none."""


class CertificateRow(SQLModel, table=True):
    """Every certificate that a device was given. `state`: current, next, old or revoked."""

    __tablename__ = "certificate"

    serial: str = Field(primary_key=True)
    """Hexadecimal, lower case, without leading zeros."""
    device: str = Field(index=True)
    pem: str = Field(sa_type=Text)
    issued: str
    expires: str
    state: str
    revoked: str | None = None
    reason: str = ""


class ClaimRow(SQLModel, table=True):
    """A batch: how many devices may ask for admission with its claim certificate, and until when."""

    __tablename__ = "claim"

    batch: str = Field(primary_key=True)
    profile: str
    group: str
    quota: int
    created: str
    expires: str
    serial: str = Field(index=True)
    certificate: str = Field(sa_type=Text)
    request_key: str | None = None
    revoked: str | None = None


class DeviceStats(SQLModel, table=True):
    """Sums over all stored telemetry of a device, kept in the transaction that stores it."""

    __tablename__ = "device_stats"

    device: str = Field(primary_key=True, foreign_key="device.id")
    requests: int = big()
    errors: int = big()
    latency: str = Field(default="{}", sa_type=Text)
    feedback_total: int = big()
    feedback_correct: int = big()
    records: int = big()
    duplicates: int = big()
    health: str = Field(default="", sa_type=Text)
    inference_at: str = ""
    """The end of the newest window with a request, by the device's clock but never after it came; "" before one."""
    health_at: str = ""
    """The same of `health`."""


_EVENTS = text("stream = 'event'")


class TelemetryRow(SQLModel, table=True):
    """One telemetry record as it came, for some hours; an event for months. `(device, boot, seq)` names it for ever.

    It stands for the records of its stream from `first` to `seq`. What it says is in `DeviceStats` and in the windows
    of evidence, and that it was stored in `SeenRow`, in the same transaction: those stay.
    """

    __tablename__ = "telemetry"
    __table_args__ = (
        UniqueConstraint("device", "boot", "seq", name="telemetry_once"),
        Index("ix_telemetry_event", "device", "id", sqlite_where=_EVENTS, postgresql_where=_EVENTS),
    )

    id: int | None = Field(default=None, primary_key=True, sa_type=BIG)
    device: str = Field(foreign_key="device.id")
    boot: str
    stream: str = "inference"
    first: int = Field(sa_type=BIG)
    seq: int = Field(sa_type=BIG)
    received: str
    record: str = Field(sa_type=Text)


class LedgerRow(SQLModel, table=True):
    """One stream of a device: what is stored, what the device said last (`document`), and what does not balance.

    `memory` and `epoch` are those for which `offset` (between the device's count of delivered records and `stored`) and
    `merged_before` hold; `lost` waited on a device whose memory was lost.
    """

    __tablename__ = "telemetry_ledger"

    device: str = Field(primary_key=True, foreign_key="device.id")
    stream: str = Field(primary_key=True)
    stored: int = big()
    merged: int = big()
    memory: str = ""
    epoch: int = big()
    offset: int = big()
    merged_before: int = big()
    lost: int = big()
    fault: str = Field(default="", sa_type=Text)
    document: str = Field(default="", sa_type=Text)


class CommandRow(SQLModel, table=True):
    """A command to a device, and what came of it. `state`: waiting, done, refused, failed, expired or replaced.

    `reply` is what the device answered.
    """

    __tablename__ = "command"

    device: str = Field(primary_key=True, foreign_key="device.id")
    epoch: int = Field(primary_key=True, sa_type=BIG)
    seq: int = Field(primary_key=True, sa_type=BIG)
    action: str
    issued: str
    expires: str
    state: str = "waiting"
    ended: str | None = None
    reply: str = Field(default="", sa_type=Text)


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
    """A rollout. `state` is one of `fleet.rollout.table`; `reasons` and `waves` are JSON lists, `terms` is JSON.

    `settled` is since when every device that this wave has reached has answered, `eligible` how many it may reach in
    all, as of the last look.
    """

    __tablename__ = "rollout"

    id: str = Field(primary_key=True)
    request_key: str | None = Field(default=None, unique=True)
    asked: str = Field(default="", sa_type=Text)
    """The request as it was asked, to know it again by its key."""
    group: str | None = None
    """Only devices of this group; None: of every group."""
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
    terms: str = Field(default="{}", sa_type=Text)
    created: str = ""
    created_by: str = ""
    approved_by: str = ""
    settled: str | None = None
    eligible: int = 0


class RolloutDevice(SQLModel, table=True):
    """A device that a rollout reached, what it gets, and what it should go back to (`before`: a desired model or "").

    `state`: sent, committed, failed, returned, stuck (it was to be, and keeps the release: its desired state has no
    room for what was before), or left (it is not in the fleet any more, or began anew in it).
    `profile` is the one that it was reached with, `attempt` rises when it is tried again.
    """

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
    profile: str = ""
    attempt: int = 1
    admitted: str = ""
    committed: str | None = None


class UserRow(SQLModel, table=True):
    """A person. `password` is an argon2id hash; `roles` and `groups` are JSON lists, no group means every group."""

    __tablename__ = "user"

    name: str = Field(primary_key=True)
    password: str = Field(sa_type=Text)
    roles: str
    groups: str = "[]"
    created: str
    disabled: bool = False


class ApiToken(SQLModel, table=True):
    """A token of a person or a program: only its SHA-256 is kept. `roles` and `groups` narrow what its owner may."""

    __tablename__ = "api_token"

    id: str = Field(primary_key=True)
    sha256: str = Field(unique=True)
    name: str
    owner: str = Field(index=True)
    """A user's name, or empty for a program of its own."""
    roles: str
    groups: str = "[]"
    created: str
    expires: str | None = None
    last_used: str | None = None
    revoked: str | None = None


class AuditRow(SQLModel, table=True):
    """One entry of the audit log. `hash` covers all other columns and the hash before it."""

    __tablename__ = "audit"

    seq: int = Field(primary_key=True)
    at: str
    who: str
    action: str
    subject: str
    source: str
    outcome: str
    detail: str = Field(default="", sa_type=Text)
    hash: str


class DatasetRow(SQLModel, table=True):
    """A file of examples, registered by its digest for good. `use`: test, calibration or train; `licence`: SPDX.

    `format`: jsonl, csv or npz. `rows` of texts; None for arrays, which only the compiler reads.
    """

    __tablename__ = "dataset"

    digest: str = Field(primary_key=True)
    name: str = Field(unique=True)
    use: str
    licence: str
    format: str
    rows: int | None = None
    size: int = Field(sa_type=BIG)
    who: str
    created: str


class SourceRow(SQLModel, table=True):
    """A source model of one of `SAFE_SOURCES`. `files` is a JSON list of path, digest and size; each is a blob."""

    __tablename__ = "source"

    digest: str = Field(primary_key=True)
    name: str
    kind: str
    files: str = Field(sa_type=Text)
    size: int = Field(sa_type=BIG)
    who: str
    created: str


class BuildRow(SQLModel, table=True):
    """A build, in the order of `number`. `state`: queued, running, succeeded, failed, infeasible or cancelled.

    `request` is what was asked for, `progress` the newest line of the compiler, `results` its lines on bundles and
    notes, `artifacts` what it wrote (path, digest, size): JSON each.
    """

    __tablename__ = "build"

    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    request_key: str | None = Field(default=None, unique=True)
    request: str = Field(sa_type=Text)
    source: str
    who: str
    state: str = Field(default="queued", index=True)
    reason: str = Field(default="", sa_type=Text)
    progress: str = Field(default="", sa_type=Text)
    results: str = Field(default="[]", sa_type=Text)
    artifacts: str = Field(default="[]", sa_type=Text)
    created: str
    started: str | None = None
    ended: str | None = None


class MeasureRow(SQLModel, table=True):
    """A measuring job, in the order of `number`. `state`: that of the device's report, or cancelled.

    `timing` is what the device sent. `hardware`, `emulated` and `profile` are what it said of itself then.
    `measurements` is the JSON list of evidence that follows from it.
    """

    __tablename__ = "measuring"

    number: int | None = Field(default=None, primary_key=True)
    id: str = Field(unique=True)
    device: str = Field(index=True)
    target: str
    digest: str = Field(index=True)
    rounds: int
    who: str
    state: str = Field(default="waiting", index=True)
    reason: str = Field(default="", sa_type=Text)
    created: str
    ended: str | None = None
    profile: str = ""
    hardware: str = ""
    emulated: bool = False
    timing: str = Field(default="", sa_type=Text)
    measurements: str = Field(default="[]", sa_type=Text)


class DeltaRow(SQLModel, table=True):
    """What makes `blob` of `base`, made once. `state`: waiting, ready or failed, with the reason.

    `lacking`: bytes of chunks that it saves. `delta` is a blob here, `chunks` its chunk list if it has one. `used` is
    when it was offered last, to the hour.
    """

    __tablename__ = "delta"

    base: str = Field(primary_key=True)
    blob: str = Field(primary_key=True)
    lacking: int = Field(sa_type=BIG)
    state: str = Field(default="waiting", index=True)
    reason: str = Field(default="", sa_type=Text)
    delta: str = ""
    size: int = big()
    chunks: str | None = None
    chunks_size: int = big()
    created: str
    used: str


class MetaRow(SQLModel, table=True):
    """What the fleet knows of itself: `epoch`, `audit-head`, `restores`."""

    __tablename__ = "meta"

    key: str = Field(primary_key=True)
    value: str = Field(sa_type=Text)
