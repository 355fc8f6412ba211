"""Evidence: what was measured of a bundle, where, with what, and how sure it is.

Kept beside a bundle, never in it: an OCI artifact whose `subject` is the bundle's manifest. Card, tables
and reports all read this one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from wire.document import CONTRACT, Document, check_digest

Kind = Literal["measured", "emulated", "predicted"]


@dataclass(frozen=True, kw_only=True)
class Measurement(Document):
    """One figure. `low` and `high` are the 95 % interval, `n` the number of samples behind it.

    `kind` is `measured` only when the figure was taken on hardware of the profile; `emulated` when it was
    taken on another machine that ran the same file; `predicted` when nothing ran.
    """

    metric: str
    value: float
    unit: str
    n: int
    kind: Kind
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt(Document):
    """A recipe that was tried for the profile, and what became of it: `chosen`, `passed` or why it lost."""

    recipe: str
    outcome: Literal["chosen", "passed", "failed"]
    reason: str
    bytes: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence(Document):
    """`results.json`: everything known of one bundle when it was built.

    Metrics in use: `accuracy` and `source_accuracy` (fraction of the same held-out texts), `latency_p50` and
    `latency_p99` (ms, batch 1, one thread), `size` (bytes of the model file), `source_size`.
    """

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    contract: str = CONTRACT
    subject: str
    target: str
    recipe: str
    runtime: str
    precision: str
    device: str
    versions: Mapping[str, str]
    dataset: Mapping[str, str]
    measurements: tuple[Measurement, ...]
    attempts: tuple[Attempt, ...]

    def __post_init__(self) -> None:
        check_digest(self.subject, "evidence subject")

    def get(self, metric: str) -> Measurement | None:
        """The measurement of a metric, if there is one."""
        return next((m for m in self.measurements if m.metric == metric), None)
