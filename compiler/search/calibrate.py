"""Asks a variant and its source the calibration examples, and lays what is learnt beside the variant.

Only a task with one label for an example is calibrated, and only with labelled examples that the source did not learn
from: on those that it knows a model is surer than it should be. Where they are absent nothing is calibrated.
"""

# ruff: noqa: PLC0415  numpy comes with what is imported late: a cached build must not wait for it
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compiler.errors import Unavailable
from compiler.inputs import Inputs
from compiler.judge.figures import Where, calibrated
from compiler.search.bench import Bench
from compiler.search.choose import Trial
from compiler.variant import LINEAGE, PIPELINE, Variant
from compiler.workshop.children import Failed
from compiler.workshop.workshop import Workshop
from wire.evidence import Measurement
from wire.lineage import Lineage
from wire.pipeline import CALIBRATED_TASKS, SCORES, Calibration, Pipeline

if TYPE_CHECKING:
    from compiler.examples.examples import Examples, Row
    from compiler.judge.calibrate import Fitted
    from compiler.sources.source import Source
    from wire.processing import Result

MOST = 4000
"""Rows that are asked, evenly from the file: as often of each label as it has them, for how often is what is learnt."""


@dataclass(frozen=True)
class Rows:
    """The calibration examples that are asked, and their places in the file."""

    places: tuple[int, ...]
    rows: tuple[Row, ...]


def rows_of(inputs: Inputs, note: Callable[[str], None]) -> Rows | None:
    """What confidence is learnt from; None, with a note why, where it is not."""
    from compiler.judge.calibrate import FEWEST

    source, found = inputs.source, inputs.calibration
    if source.task not in CALIBRATED_TASKS or found is None:
        return None
    fault = _fault(found, source, FEWEST)
    if fault:
        note(f"how sure an answer is stays uncalibrated: {fault}; give labelled examples that were held out")
        return None
    n = min(MOST, len(found.rows))
    places = tuple(i * len(found.rows) // n for i in range(n))
    return Rows(places, tuple(found.rows[i] for i in places))


def _fault(found: Examples, source: Source, fewest: int) -> str | None:
    learnt = next((d for d in source.trained if d.digest == found.digest), None)
    if learnt is not None:
        return f"the source learned from {learnt.name}"
    if found.rows[0].label is None:
        return f"the rows of {found.name} have no labels"
    strange = next((row.label for row in found.rows if row.label not in source.labels), None)
    if strange is not None:
        return f"{found.name} has the label {strange!r:.80}, which the source cannot give"
    return None if len(found.rows) >= fewest else f"{found.name} has {len(found.rows)} rows, {fewest} are needed"


def calibrate_all(chosen: Iterable[Trial], asked: Rows, bench: Bench) -> Mapping[str, Fitted]:
    """Calibrate each different variant once; by the key of its candidate."""
    different = {t.candidate.key: bench.variant(t.candidate) for t in chosen}
    source = bench.variant(bench.reference.candidate)
    found: dict[str, Fitted] = {}
    for key, variant in different.items():
        found[key] = learn(variant, source, asked, bench.shop, bench.inputs, bench.job.target_error)
        lay(variant, found[key].calibration, bench.inputs)
    return found


def learn(
    variant: Variant, source: Variant, asked: Rows, shop: Workshop, inputs: Inputs, target_error: float
) -> Fitted:
    """What the answers of a variant and of the graph that stands for its source say. Raises `Unavailable`."""
    import numpy as np

    from compiler.judge.calibrate import Answers, fit

    ours, theirs = _answers([variant, source], asked, shop, inputs)
    labels = inputs.source.labels
    true = np.asarray([labels.index(str(row.label)) for row in asked.rows])
    scores = np.stack([r.outputs[SCORES] for r in ours])
    knows = np.stack([r.outputs[SCORES] for r in theirs]).argmax(axis=-1) == true
    answers = Answers(scores, true, knows & (scores.argmax(axis=-1) != true))
    return fit(answers, softmax=inputs.source.activation == "softmax", target_error=target_error)


def _answers(variants: Sequence[Variant], asked: Rows, shop: Workshop, inputs: Inputs) -> list[tuple[Result, ...]]:
    assert inputs.calibration_path is not None
    found = []
    for variant, scored in zip(variants, shop.score(variants, inputs.calibration_path, rows=asked.places), strict=True):
        if isinstance(scored, Failed):
            raise Unavailable(f"variant {variant.folder.name}: on the calibration examples: {scored.reason}")
        found.append(scored.results)
    return found


def lay(variant: Variant, calibration: Calibration, inputs: Inputs) -> None:
    """Write it into the variant's pipeline, and the examples that it came from into its lineage."""
    pipeline = Pipeline.from_bytes((variant.folder / PIPELINE).read_bytes())
    _rewrite(variant, PIPELINE, replace(pipeline, calibration=calibration).to_bytes())
    lineage = Lineage.from_bytes((variant.folder / LINEAGE).read_bytes())
    if not any(d.use == "calibration" for d in lineage.datasets):
        found = (*lineage.datasets, *inputs.calibration_set())
        _rewrite(variant, LINEAGE, replace(lineage, datasets=found).to_bytes())


def _rewrite(variant: Variant, name: str, data: bytes) -> None:
    path = variant.folder / name
    path.unlink()  # others may be linked to the file as it was
    path.write_bytes(data)


def measurements(fitted: Fitted | None, where: Where) -> tuple[Measurement, ...]:
    """What evidence says of it."""
    if fitted is None:
        return ()
    return calibrated(before=fitted.error_before, after=fitted.error, asked=fitted.escalated, n=fitted.n, where=where)
