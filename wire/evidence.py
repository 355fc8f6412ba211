"""Evidence: what was measured of a bundle, where, with what, and how sure it is.

Kept beside a bundle, never in it: an OCI artifact whose `subject` is the bundle's manifest. Card, ML-BOM, tables,
report and console all read this one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from wire.document import CONTRACT, Document, check_counts, check_digest
from wire.errors import Malformed
from wire.lineage import Dataset
from wire.sketch import Histogram, Sketch

Kind = Literal["measured", "emulated", "predicted"]
Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Measurement(Document):
    """One figure. `low` and `high` are the interval at the evidence's confidence, `n` the number of samples behind it.

    `kind` is `measured` only when the figure was taken on hardware of the profile; `emulated` when it was
    taken on another machine that ran the same file; `predicted` when nothing ran. `device` is what it was taken on and
    `runtime` the runtime with its version; both are empty where the figure does not depend on them (sizes).
    """

    metric: str
    value: float
    unit: str
    n: int
    kind: Kind
    low: float | None = None
    high: float | None = None
    device: str = ""
    runtime: str = ""


@dataclass(frozen=True, kw_only=True)
class Attempt(Document):
    """A recipe that was tried for the profile, and what became of it.

    `chosen`, or `pass` (it holds, and another is better), `fail` and `inconclusive` (its figures), `refused` (a rule
    says before any work that it cannot be; `rule` is its id), `broken` (it was not made or does not run). `reason` is
    for people. `kept_float` are the groups of layers that went back to float, in that order. `fell_back` counts
    operators that do not run in the recipe's precision or on its accelerator.
    """

    recipe: str
    outcome: Literal["chosen", "pass", "fail", "inconclusive", "refused", "broken"]
    reason: str
    runtime: str = ""
    precision: str = ""
    rule: str | None = None
    measurements: tuple[Measurement, ...] = ()
    kept_float: tuple[str, ...] = ()
    fell_back: Mapping[str, int] = field(default_factory=dict)

    def get(self, metric: str) -> Measurement | None:
        """The measurement of a metric, if there is one."""
        return next((m for m in self.measurements if m.metric == metric), None)


@dataclass(frozen=True, kw_only=True)
class ClassChange(Document):
    """Of the `n` test examples of one label: how many the source got right, how many the variant, how many both."""

    label: str
    n: int
    source: int
    variant: int
    both: int


@dataclass(frozen=True, kw_only=True)
class Decision(Document):
    """The paired comparison of variant and source on the same examples.

    `drop` is what was lost, in points of the metric (0 to 100), `low` and `high` its interval at `confidence`
    (two-sided). `pass`: `high` is at or below `max_drop`; `fail`: `low` is above it; else `inconclusive`. `needed` is
    how many examples the question asks for, worked out before the work from `changed_planned`, the share of examples
    whose answer was expected to change; `needed_seen` is the same from `changed`, the share that did.
    """

    metric: str
    max_drop: float
    confidence: float
    n: int
    needed: int
    changed_planned: float
    drop: float
    low: float
    high: float
    outcome: Outcome
    changed: float = 0.0
    needed_seen: int = 0


@dataclass(frozen=True, kw_only=True)
class Sabotage(Document):
    """A variant broken on purpose, and what each gate said of it. A build in which a gate lets one pass fails."""

    name: str
    golden: str
    accuracy: str


@dataclass(frozen=True, kw_only=True)
class Reference(Document):
    """What inputs and answers of the variant look like on the `n` examples of a data set: what drift is held against.

    The fields are those of `wire.messages.InferenceStats`, counted by the same code (`wire.shapes`). Empty is what the
    task does not have: a language model has no labels, a picture no language.
    """

    dataset: str
    n: int
    labels: Mapping[str, int] = field(default_factory=dict)
    confidence: Histogram = field(default_factory=Histogram)
    lengths: Sketch = field(default_factory=Sketch)
    languages: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_digest(self.dataset, "reference.dataset")
        check_counts(self, "n")
        if any(n < 0 for n in (*self.labels.values(), *self.languages.values())):
            raise Malformed("reference: a label or a language is counted below 0")


@dataclass(frozen=True, kw_only=True)
class Wanted(Document):
    """What the search was asked for: limits, 0 where there is none, and what to make small."""

    max_drop: float
    max_ms: float
    max_mb: float
    minimise: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Evidence(Document):
    """`results.json`: everything known of one bundle when it was built.

    Metrics in use: `accuracy` and `source_accuracy` (fraction of the same labelled examples) or, where the examples
    have no labels, `agreement` with the source's answers (share of equal labels, or how nearly equal the outputs are),
    `drop` (points), `latency_p50` and `latency_p99` (ms from example to answer, batch 1, one thread; of a
    language model for each token of its answer, after the first), `size` (bytes of
    the model file), `footprint` (bytes of the whole bundle on a device), `source_size`, `memory` (bytes the process
    grew by with the model loaded). Of a calibrated variant, on the calibration examples: `calibration_error_before` and
    `calibration_error` (expected calibration error of the scores as they come, and of the calibrated confidence), and
    `escalated` (share of answers below the threshold, for which a larger model is worth asking).

    `reference` is what drift on devices is held against; None in evidence of an older compiler.
    `compile_only`: the runtime was never seen working on the profile's hardware. `registered`: the version of a model
    registry that the source was (`models:/name/3`); "" where it came from none.
    """

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    contract: str = CONTRACT
    subject: str
    target: str
    task: str
    recipe: str
    runtime: str
    precision: str
    source: str
    architecture: str
    tools: Mapping[str, str]
    datasets: tuple[Dataset, ...]
    wanted: Wanted
    decision: Decision
    measurements: tuple[Measurement, ...]
    attempts: tuple[Attempt, ...]
    classes: tuple[ClassChange, ...] = ()
    sabotage: tuple[Sabotage, ...] = ()
    compile_only: bool = False
    registered: str = ""
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_digest(self.subject, "evidence subject")

    def get(self, metric: str) -> Measurement | None:
        """The measurement of a metric, if there is one."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def dataset(self, use: str) -> Dataset | None:
        """The data set of a use, if there is one."""
        return next((d for d in self.datasets if d.use == use), None)
