"""The messages on the topics, as values. Each is one JSON document.

`Statement`s travel inside a DSSE envelope (`wire.dsse`): what the fleet says (`wire.orders`) is signed by the fleet
role, what a device says of itself by the device's key. `boot` is new at every start of an agent, `starts` counts them;
`(boot, seq)` names a record for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from wire.agreement import Agreement
from wire.chunks import MAX_CHUNKS
from wire.document import CONTRACT, Document, check_counts, check_device, check_digest, check_name, check_token
from wire.errors import Malformed
from wire.ledger import StreamLedger, check_streams
from wire.life import DeviceEvent, LineState, ModelTest
from wire.shadow import ShadowReport
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
class MachineState(Document):
    """What a machine says of heat and power at one moment; None and "" where it does not say.

    `throttled`: the clock is held down now, for heat or voltage. `throttle_events` counts how often it was since the
    machine started. `throttle_bits` are those of a Raspberry Pi's firmware: bits 0 to 3 are now, 16 to 19 since the
    start (under-voltage, frequency capped, throttled, soft limit of temperature). `load` is that of the last minute,
    `battery_percent` what is left in the fullest battery.
    """

    at: str
    throttled: bool | None = None
    throttle_events: int | None = None
    throttle_bits: int | None = None
    temperature_c: float | None = None
    cpu_mhz: float | None = None
    cpu_max_mhz: float | None = None
    governor: str = ""
    power_mode: str = ""
    power: Literal["mains", "battery", ""] = ""
    load: float | None = None
    battery_percent: float | None = None

    def __post_init__(self) -> None:
        instant(self.at, where="machinestate.at")


@dataclass(frozen=True, kw_only=True)
class Timing(Document):
    """How long a model took from example to answer, batch 1, one thread: percentiles in ms of `n` answers.

    `low` and `high` of a percentile are the ranks between which it lies at `confidence`. `load_ms` is the loading of
    runtime and model, `memory` the bytes by which the process grew. `runtime` names its version: `onnxruntime 1.31.1`.
    """

    runtime: str
    rounds: int
    n: int
    p50_ms: float
    p50_low: float
    p50_high: float
    p99_ms: float
    p99_low: float
    p99_high: float
    confidence: float
    load_ms: float
    memory: int
    before: MachineState
    after: MachineState

    def __post_init__(self) -> None:
        check_counts(self, "rounds", "n", "p50_ms", "p99_ms", "load_ms", "memory")

    @property
    def throttled(self) -> bool | None:
        """Whether the clock was held down before, after, or in between; None when the machine does not say."""
        before, after = self.before, self.after
        said: list[bool] = [s.throttled for s in (before, after) if s.throttled is not None]
        if before.throttle_events is not None and after.throttle_events is not None:
            said.append(after.throttle_events != before.throttle_events)
        if before.throttle_bits is not None and after.throttle_bits is not None:
            said.append(bool((after.throttle_bits & ~before.throttle_bits) >> 16))
        return any(said) if said else None


MeasurePhase = Literal["waiting", "fetching", "running", "done", "failed", "refused"]


@dataclass(frozen=True, kw_only=True)
class MeasureReport(Document):
    """How a measuring job of the desired state goes. `failed` and `refused` carry the reason, `done` the timing."""

    id: str
    target: str
    digest: str
    phase: MeasurePhase = "waiting"
    reason: str = ""
    timing: Timing | None = None

    @property
    def ended(self) -> bool:
        """Whether the device is through with it."""
        return self.phase in ("done", "failed", "refused")


@dataclass(frozen=True, kw_only=True)
class SecurityEvent(Document):
    """Something that was refused because it could not be trusted."""

    at: str
    subject: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Reported(Statement):
    """What a device does run. `emulated` is true when it does not stand on its profile's hardware.

    `starts` counts the starts of the agent since it was enrolled: `(starts, seq)` rises with every report, and an older
    one is a replay or a clone. `nonce` is answered by an `Ack`. `sealing_key` is what keys are sealed to
    (`wire.secrecy.public_text`). `security` is what was refused here, the attacks seen.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.reported.v1+json"
    LIMIT: ClassVar[int] = 64 * 1024

    boot: str
    starts: int
    seq: int
    nonce: str
    time: str
    sealing_key: str
    agent: str
    profile: str
    hardware: str
    emulated: bool
    desired_epoch: int
    desired_seq: int
    slots: tuple[SlotReport, ...] = ()
    updates: tuple[UpdateReport, ...] = ()
    measured: tuple[MeasureReport, ...] = ()
    shadows: tuple[ShadowReport, ...] = ()
    security: tuple[SecurityEvent, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.boot, "reported.boot")
        check_token(self.nonce, "reported.nonce")
        instant(self.time, where="reported.time")
        check_counts(self, "starts", "seq", "desired_epoch", "desired_seq")

    @property
    def number(self) -> tuple[int, int]:
        """What rises."""
        return self.starts, self.seq


@dataclass(frozen=True, kw_only=True)
class InferenceStats(Document):
    """What one model did in one window. `labels` counts answers by label; feedback compares them with the true ones.

    `agreement` compares them with the reference in the cloud, by how sure they were. `routes` counts the requests that
    were routed, by where they were answered and why, such as `local sure`. `lengths` are those of inputs in tokens,
    before anything is cut off (of what is no text: in values), in coarse buckets; `languages` counts texts by ISO 639-1
    code.
    `labels`, `confidence`, `lengths` and `languages` come once an hour and count since the last time (`wire.shapes`).

    `shadow`: the model answered nobody; it ran beside the active one on `requests`, `compared` of which had an answer
    of both, and `agreed` the same one. Its latency and errors are its own.
    """

    LEAN: ClassVar[frozenset[str]] = frozenset({"confidence", "labels", "languages", "lengths"})

    model: str
    digest: str
    requests: int
    errors: int
    latency_ms: Sketch = field(default_factory=Sketch)
    confidence: Histogram = field(default_factory=Histogram)
    labels: Mapping[str, int] = field(default_factory=dict)
    feedback_total: int = 0
    feedback_correct: int = 0
    agreement: tuple[Agreement, ...] = ()
    routes: Mapping[str, int] = field(default_factory=dict)
    lengths: Sketch = field(default_factory=Sketch)
    languages: Mapping[str, int] = field(default_factory=dict)
    shadow: bool = False
    compared: int = 0
    agreed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "requests", "errors", "feedback_total", "feedback_correct", "compared", "agreed")
        if any(n < 0 for n in (*self.labels.values(), *self.routes.values(), *self.languages.values())):
            raise Malformed(f"inference of {self.model[:80]}: a label, a route or a language is counted below 0")


@dataclass(frozen=True, kw_only=True)
class Health(Document):
    """CPU in percent of the whole machine, memory and disk in bytes, degrees Celsius (None: no sensor).

    `restarts` counts the starts of the agent since enrolment by what ended the one before: clean, crash, watchdog or
    power. `uptime_s` is that of the agent. `clock_offset_s` is by how much the machine's clock is ahead of the time
    that the fleet signed; None before it told the time. `window_s` is the length of its telemetry windows: it is heard
    once in each. `golden` says by digest whether the golden set of a model that is loaded held when it was run last.
    """

    cpu_percent: float
    memory_used: int
    memory_total: int
    agent_memory: int
    disk_free: int
    disk_total: int
    temperature_c: float | None = None
    machine: MachineState | None = None
    line: LineState | None = None
    restarts: Mapping[str, int] = field(default_factory=dict)
    uptime_s: float | None = None
    clock_offset_s: float | None = None
    window_s: float | None = None
    golden: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord(Document):
    """One window of time on one device, of one stream. `seq` counts from 1 within a boot, over all streams.

    A record that others were merged into stands for those of its stream from `first` to `seq`; `merged` says how many
    they were beside itself. `first` is 0 for one that stands for itself. `stream` is "" from an agent of the first
    contract, whose records were never merged.
    """

    seq: int
    start: str
    end: str
    stream: str = ""
    first: int = 0
    merged: int = 0
    inference: tuple[InferenceStats, ...] = ()
    health: Health | None = None
    events: tuple[DeviceEvent, ...] = ()

    def __post_init__(self) -> None:
        instant(self.start, where="telemetry.start")
        instant(self.end, where="telemetry.end")
        check_counts(self, "first", "merged")
        if self.stream:
            check_name(self.stream, "telemetry.stream")
        if self.first > self.seq or self.merged > self.seq - (self.first or self.seq):
            raise Malformed(f"telemetry {self.seq}: {self.merged} records from {self.first} on cannot be in it")

    @property
    def begin(self) -> int:
        """The first seq that it stands for."""
        return self.first or self.seq


@dataclass(frozen=True, kw_only=True)
class TelemetryBatch(Statement):
    """Records of one boot by rising seq. Sent again until acknowledged: the fleet stores each `(boot, seq)` once.

    `boot` is that of the records, which may be an earlier one. `(starts, sent)` are of the sender and rise with every
    sending, so that a batch that somebody recorded and sends again is known as a replay. `ledger` says where all
    records of `memory` went: a device whose memory was lost, or which joined anew, has another.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.telemetry.v1+json"
    LIMIT: ClassVar[int] = 64 * 1024

    boot: str
    starts: int
    sent: int
    nonce: str
    records: tuple[TelemetryRecord, ...]
    memory: str = ""
    ledger: tuple[StreamLedger, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.boot, "telemetry.boot")
        check_token(self.nonce, "telemetry.nonce")
        if self.memory:
            check_token(self.memory, "telemetry.memory")
        check_streams(self.ledger, f"telemetry of {self.device}")
        check_counts(self, "starts", "sent")
        seqs = [r.seq for r in self.records]
        if not seqs or seqs[0] < 1 or any(b <= a for a, b in pairwise(seqs)):
            raise Malformed(f"telemetry of {self.device}: seq must rise from 1")

    @property
    def number(self) -> tuple[int, int]:
        """What rises."""
        return self.starts, self.sent


@dataclass(frozen=True, kw_only=True)
class Reply(Statement):
    """What came of the command with this `(epoch, seq)`: `tests` of a self-test, `log` of the command that asks for it.

    The lines of a log are the newest ones, the oldest first, and hold nothing that is secret.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.reply.v1+json"
    LIMIT: ClassVar[int] = 64 * 1024

    epoch: int
    seq: int
    outcome: Literal["done", "refused", "failed"]
    reason: str = ""
    tests: tuple[ModelTest, ...] = ()
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "epoch", "seq")


@dataclass(frozen=True, kw_only=True)
class Renewal(Statement):
    """A certificate asked for after the old one ran out: TLS would refuse that one, so its key signs this instead.

    `certificate` is the newest one that the device holds (PEM), `request` a PKCS#10 request (DER, base64).
    """

    PAYLOAD_TYPE = "application/vnd.shoal.renewal.v1+json"
    LIMIT: ClassVar[int] = 16 * 1024

    certificate: str
    request: str


@dataclass(frozen=True, kw_only=True)
class Want(Document):
    """Chunks of a blob that a device lacks: a bitmap over `count` chunks (`wire.chunks`). None: it is through with it.

    `seen` is the chunk that came last, on this connection: what was published after it may still be on its way and is
    not meant; what was published before it and is lacking was lost. -1: nothing is on its way any more, or ever was.
    """

    contract: str = CONTRACT
    digest: str
    count: int
    missing: str
    seen: int = -1

    def __post_init__(self) -> None:
        check_digest(self.digest, "want.digest")
        if not 0 < self.count <= MAX_CHUNKS:
            raise Malformed(f"want.count: expected 1 to {MAX_CHUNKS}, got {self.count}")
        if not -1 <= self.seen < self.count:
            raise Malformed(f"want.seen: expected -1 to {self.count - 1}, got {self.seen}")


@dataclass(frozen=True, kw_only=True)
class Presence(Document):
    """On `state` and `fleet/state`: birth, and death by will. A death only buries the birth of the same session."""

    LIMIT: ClassVar[int] = 4 * 1024

    contract: str = CONTRACT
    session: str
    online: bool

    def __post_init__(self) -> None:
        check_token(self.session, "presence.session")
