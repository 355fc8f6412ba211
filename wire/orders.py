"""What the fleet says to one device. Each is believed only when the fleet role signed it (`wire.dsse.open_by_role`).

An `Order` names its device, carries a sequence that rises within its kind, and an expiry: `wire.admission.check_order`
refuses another device's, an old one and a late one. `epoch` rises when a fleet comes back from a backup.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

from wire.bundle import split_target
from wire.chunks import WHOLE
from wire.document import Document, check_counts, check_digest, check_token
from wire.errors import Malformed
from wire.messages import Statement
from wire.shadow import MAX_SHADOWS, ShadowModel
from wire.units import instant

MAX_JOBS: Final = 8
"""Measuring jobs that one device may have at a time."""
MAX_ROUNDS: Final = 1000
MAX_OFFERS: Final = 16
"""Deltas that one desired state may offer."""


@dataclass(frozen=True, kw_only=True)
class Order(Statement):
    """Something that makes a device act or forget."""

    epoch: int
    seq: int
    issued: str
    expires: str

    def __post_init__(self) -> None:
        super().__post_init__()
        where = type(self).__name__.lower()
        instant(self.issued, where=f"{where}.issued")
        instant(self.expires, where=f"{where}.expires")
        check_counts(self, "epoch", "seq")

    @property
    def number(self) -> tuple[int, int]:
        """What rises."""
        return self.epoch, self.seq

    @property
    def time(self) -> datetime:
        """When the fleet signed it."""
        return instant(self.issued)


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
class MeasureJob(Document):
    """A release that a device should time and not run: its golden inputs, one after the other, `rounds` times.

    A device does the job of an `id` once, and reports it as long as the job stands in its desired state.
    """

    id: str
    target: str
    digest: str
    rounds: int

    def __post_init__(self) -> None:
        check_token(self.id, "measure.id")
        split_target(self.target)
        check_digest(self.digest, f"digest to measure of {self.target}")
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise Malformed(f"measure.rounds: expected 1 to {MAX_ROUNDS}, got {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class DeltaOffer(Document):
    """A device that holds `base` can make `blob` of it with `delta` (`wire.delta`), a blob of `size` bytes.

    `chunks` is the delta's chunk list, of `chunks_size` bytes; None when it travels whole. An offer is a hint: what is
    made has the digest that a release names, or it is not kept.
    """

    blob: str
    base: str
    delta: str
    size: int
    chunks: str | None = None
    chunks_size: int = 0

    def __post_init__(self) -> None:
        for name in ("blob", "base", "delta"):
            check_digest(getattr(self, name), f"offer.{name}")
        if self.chunks is not None:
            check_digest(self.chunks, "offer.chunks")
        check_counts(self, "size", "chunks_size")
        if self.size == 0 or max(self.size if self.chunks is None else 0, self.chunks_size) > WHOLE:
            raise Malformed(f"offer of {self.blob}: {self.size} bytes, its chunk list {self.chunks_size}: not so cut")
        if (self.chunks is None) != (self.chunks_size == 0):
            raise Malformed(f"offer of {self.blob}: a chunk list of {self.chunks_size} bytes: {self.chunks}")


@dataclass(frozen=True, kw_only=True)
class Desired(Order):
    """What a device should run, and measure. A newer `(epoch, seq)` supersedes; `expires` blocks only new installs.

    `keys` is the key ring of every blob that it needs, sealed to the device's sealing key (`wire.secrecy`), base64;
    empty as long as the fleet does not know that key: a newer desired state brings it. `offers` are shorter ways to
    some of those blobs. `shadows` run beside models of theirs that stand here, and answer nobody.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.desired.v1+json"
    LIMIT: ClassVar[int] = 16 * 1024

    models: tuple[DesiredModel, ...]
    keys: str = ""
    measure: tuple[MeasureJob, ...] = ()
    offers: tuple[DeltaOffer, ...] = ()
    shadows: tuple[ShadowModel, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({m.model for m in self.models}) != len(self.models):
            raise Malformed(f"desired state of {self.device}: one model name stands twice")
        if len({job.id for job in self.measure}) != len(self.measure):
            raise Malformed(f"desired state of {self.device}: one measuring job stands twice")
        if len(self.measure) > MAX_JOBS:
            raise Malformed(f"desired state of {self.device}: {len(self.measure)} measuring jobs, at most {MAX_JOBS}")
        if len(self.offers) > MAX_OFFERS:
            raise Malformed(f"desired state of {self.device}: {len(self.offers)} offers, at most {MAX_OFFERS}")
        beside = {shadow.model for shadow in self.shadows}
        if len(beside) != len(self.shadows) or len(beside) > MAX_SHADOWS:
            raise Malformed(
                f"desired state of {self.device}: {len(self.shadows)} in shadow, at most {MAX_SHADOWS}, one a name"
            )
        if not beside <= {m.model for m in self.models}:
            raise Malformed(f"desired state of {self.device}: a model in shadow of none that stands in it")


@dataclass(frozen=True, kw_only=True)
class Ack(Order):
    """The answer to the nonce of a report or a telemetry batch: the fleet's time, and its latest desired state.

    `stored`: the records of `boot` up to and including this seq are on the fleet's disk; 0 says nothing of records.
    Whether it comes late is judged by the time since the nonce was sent, never by a clock that it may have to correct.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.ack.v1+json"
    LIMIT: ClassVar[int] = 4 * 1024

    nonce: str
    boot: str
    stored: int
    desired_epoch: int
    desired_seq: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.nonce, "ack.nonce")
        check_token(self.boot, "ack.boot")
        check_counts(self, "stored", "desired_epoch", "desired_seq")


@dataclass(frozen=True, kw_only=True)
class Command(Order):
    """Something to do once, now: `report` sends a report, `wipe` forgets identity, keys, data and models.

    Not retained, and not run when it comes late. A device answers with `wire.messages.Reply`, `refused` for an action
    that it does not know.
    """

    PAYLOAD_TYPE = "application/vnd.shoal.command.v1+json"
    LIMIT: ClassVar[int] = 4 * 1024

    action: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_token(self.action, "command.action")
