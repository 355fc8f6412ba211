"""The messages on the topics, as values. Each is one JSON document.

`Statement`s travel inside a DSSE envelope (`wire.dsse`): what the fleet says is signed by the fleet role,
what a device says of itself by the device's key. `boot` is new at every start of an agent; `(boot, seq)`
names a record for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from wire.bundle import split_target
from wire.chunks import MAX_CHUNKS
from wire.document import CONTRACT, Document, check_counts, check_device, check_digest, check_token
from wire.errors import Malformed
from wire.profile import Profile
from wire.sketch import Histogram, Sketch
from wire.units import instant


@dataclass(frozen=True, kw_only=True)
class Statement(Document):
    """A document that is only believed when signed. `PAYLOAD_TYPE` is its DSSE payload type."""

    PAYLOAD_TYPE: ClassVar[str]

    contract: str = CONTRACT
    device: str

    def __post_init__(self) -> None:
        check_device(self.device, f"{type(self).__name__.lower()}.device")


@dataclass(frozen=True, kw_only=True)
class DesiredModel(Document):
    """A release that a device should run: target path, digest of its manifest, and the rollout it belongs to."""

    target: str
    digest: str
    rollout: str | None = None

    def __post_init__(self) -> None:
        split_target(self.target)
        check_digest(self.digest, f"desired digest of {self.target}")

    @property
    def model(self) -> str:
        """The name under which the local API serves it."""
        return split_target(self.target)[1]


@dataclass(frozen=True, kw_only=True)
class Desired(Statement):
    """What a device should run. A newer `(epoch, seq)` supersedes; `expires` blocks only new installs."""

    PAYLOAD_TYPE = "application/vnd.shoal.desired.v1+json"
    LIMIT: ClassVar[int] = 16 * 1024

    epoch: int
    seq: int
    issued: str
    expires: str
    models: tuple[DesiredModel, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        instant(self.issued, where="desired.issued")
        instant(self.expires, where="desired.expires")
        check_counts(self, "epoch", "seq")
        if len({m.model for m in self.models}) != len(self.models):
            raise Malformed(f"desired state of {self.device}: one model name stands twice")


@dataclass(frozen=True, kw_only=True)
class Ack(Statement):
    """The fleet has stored a device's records of `boot` up to and including `stored`; `nonce` is that of the batch."""

    PAYLOAD_TYPE = "application/vnd.shoal.ack.v1+json"
    LIMIT: ClassVar[int] = 4 * 1024

    nonce: str
    time: str
    boot: str
    stored: int
    desired_epoch: int
    desired_seq: int

    def __post_init__(self) -> None:
        super().__post_init__()
        instant(self.time, where="ack.time")
        check_counts(self, "stored", "desired_epoch", "desired_seq")


Phase = Literal["fetching", "self-test", "probation", "committed", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class UpdateReport(Document):
    """How the newest update of a model goes. `failed` and `refused` carry the reason; the old model keeps answering."""

    target: str
    digest: str
    rollout: str | None = None
    phase: Phase
    reason: str = ""
    chunks_done: int = 0
    chunks_total: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "chunks_done", "chunks_total")


@dataclass(frozen=True, kw_only=True)
class SlotReport(Document):
    """A model that stands in a slot: the digest is the one really loaded, not the one asked for."""

    model: str
    slot: Literal["active", "candidate", "previous"]
    target: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class SecurityEvent(Document):
    """Something that was refused because it could not be trusted."""

    at: str
    subject: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Reported(Statement):
    """What a device does run. `emulated` is true when it does not stand on its profile's hardware."""

    PAYLOAD_TYPE = "application/vnd.shoal.reported.v1+json"
    LIMIT: ClassVar[int] = 64 * 1024

    boot: str
    seq: int
    time: str
    agent: str
    profile: str
    hardware: str
    emulated: bool
    desired_epoch: int
    desired_seq: int
    slots: tuple[SlotReport, ...] = ()
    updates: tuple[UpdateReport, ...] = ()
    security: tuple[SecurityEvent, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.boot, "reported.boot")
        instant(self.time, where="reported.time")
        check_counts(self, "seq", "desired_epoch", "desired_seq")


@dataclass(frozen=True, kw_only=True)
class InferenceStats(Document):
    """What one model did in one window. `labels` counts answers by label; feedback compares them with the true ones."""

    model: str
    digest: str
    requests: int
    errors: int
    latency_ms: Sketch = field(default_factory=Sketch)
    confidence: Histogram = field(default_factory=Histogram)
    labels: Mapping[str, int] = field(default_factory=dict)
    feedback_total: int = 0
    feedback_correct: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "requests", "errors", "feedback_total", "feedback_correct")
        if any(n < 0 for n in self.labels.values()):
            raise Malformed(f"inference of {self.model[:80]}: a label is counted below 0")


@dataclass(frozen=True, kw_only=True)
class Health(Document):
    """CPU in percent of the whole machine, memory and disk in bytes, degrees Celsius (None: no sensor)."""

    cpu_percent: float
    memory_used: int
    memory_total: int
    agent_memory: int
    disk_free: int
    disk_total: int
    temperature_c: float | None = None


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord(Document):
    """One window of time on one device. `seq` counts from 1 within a boot."""

    seq: int
    start: str
    end: str
    inference: tuple[InferenceStats, ...] = ()
    health: Health | None = None

    def __post_init__(self) -> None:
        instant(self.start, where="telemetry.start")
        instant(self.end, where="telemetry.end")


@dataclass(frozen=True, kw_only=True)
class TelemetryBatch(Statement):
    """Records of one boot by rising seq. Sent again until acknowledged: the fleet stores each `(boot, seq)` once."""

    PAYLOAD_TYPE = "application/vnd.shoal.telemetry.v1+json"
    LIMIT: ClassVar[int] = 64 * 1024

    boot: str
    nonce: str
    records: tuple[TelemetryRecord, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.boot, "telemetry.boot")
        check_token(self.nonce, "telemetry.nonce")
        seqs = [r.seq for r in self.records]
        if not seqs or seqs[0] < 1 or any(b <= a for a, b in pairwise(seqs)):
            raise Malformed(f"telemetry of {self.device}: seq must rise from 1")


@dataclass(frozen=True, kw_only=True)
class Want(Document):
    """Chunks of a blob that a device lacks: a bitmap over `count` chunks (`wire.chunks`)."""

    contract: str = CONTRACT
    digest: str
    count: int
    missing: str

    def __post_init__(self) -> None:
        check_digest(self.digest, "want.digest")
        if not 0 < self.count <= MAX_CHUNKS:
            raise Malformed(f"want.count: expected 1 to {MAX_CHUNKS}, got {self.count}")


@dataclass(frozen=True, kw_only=True)
class Presence(Document):
    """On `state` and `fleet/state`: birth, and death by will. A death only buries the birth of the same session."""

    LIMIT: ClassVar[int] = 4 * 1024

    contract: str = CONTRACT
    session: str
    online: bool

    def __post_init__(self) -> None:
        check_token(self.session, "presence.session")


@dataclass(frozen=True, kw_only=True)
class EnrolmentKit(Document):
    """The small file that lets one device join.

    `fleet` is the HTTPS address, `broker` host and port, `ca` the fleet's CA certificates as PEM, `token` works
    once until `expires`, `trust` maps document names (`wire.trust`) to current signed metadata.
    """

    LIMIT: ClassVar[int] = 1024 * 1024

    contract: str = CONTRACT
    device: str
    token: str
    expires: str
    fleet: str
    broker: str
    ca: str
    trust: Mapping[str, str]
    profile: Profile

    def __post_init__(self) -> None:
        check_device(self.device, "kit.device")
        instant(self.expires, where="kit.expires")
