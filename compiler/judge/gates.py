"""The two gates that a variant must pass: its golden set, and accuracy against its source. Pure decisions.

    golden = golden_set(rows, results, recipe.tolerance)    # from the results of the variant itself
    judge(golden, fresh_results, decision)                  # what each gate says of a variant: a reason, or None
    saboteur_verdicts("scrambled weights", golden, broken_results, decision)

A saboteur goes through `judge` as the variant does. A build in which a gate lets one pass fails: a gate that cannot
refuse proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from compiler.errors import Incompatible, Untrusted
from compiler.examples.examples import Row, spread
from wire.evidence import Decision, Sabotage
from wire.pipeline import SCORES, Golden, GoldenCase
from wire.processing import Result, golden_fault, to_array, to_tensor
from wire.units import show_size

GOLDEN_CASES = 16
GOLDEN_BYTES = 2 * 1024 * 1024
"""Fewer cases are taken where they would pass this together; one is always taken."""


@dataclass(frozen=True)
class Verdict:
    """What each gate says: why it refuses, or None."""

    golden: str | None
    accuracy: str | None

    @property
    def refused_by_all(self) -> bool:
        """Whether no gate lets it pass: what a saboteur needs."""
        return self.golden is not None and self.accuracy is not None


def judge(golden: Golden, results: Sequence[Result], decision: Decision) -> Verdict:
    """Ask both gates. `results` are the answers to the golden cases, `decision` is on the test set."""
    return Verdict(golden=golden_set_fault(golden, results), accuracy=accuracy_fault(decision))


def accuracy_fault(decision: Decision) -> str | None:
    """Why a variant's accuracy does not hold against the source's; None when it was shown to."""
    if decision.outcome == "pass":
        return None
    found = (
        f"{decision.metric} drops by {decision.drop:.2f} points, {100 * decision.confidence:g} % interval "
        f"{decision.low:.2f} to {decision.high:.2f}; at most {decision.max_drop:g} are allowed"
    )
    if decision.outcome == "fail":
        return found
    return (
        f"{found}: {decision.n} examples do not decide that: {100 * decision.changed:.2g} % of the answers changed, "
        f"and then about {decision.needed_seen} show that a variant is as good as its source"
    )


def golden_places(rows: Sequence[Row]) -> list[int]:
    """Which rows become the golden set, as many as it may hold: spread over the labels."""
    return spread([row.label for row in rows], GOLDEN_CASES)


def golden_set(rows: Sequence[Row], results: Sequence[Result], tolerance: float) -> Golden:
    """The golden set of a variant: its own results for some of the rows, the first of `golden_places`.

    `tolerance` is a share of the outputs' range: for scores, of that between the highest and the lowest seen, which is
    near 1 for a model that tells its classes apart; for other outputs, of the largest number seen. Raises
    `Incompatible` when the variant answers no numbers or nothing but zeros, or one case alone is too large to travel.
    """
    cases = [_case(rows[i], results[i]) for i in golden_places(rows)]
    total = accumulate(len(case.to_bytes()) for case in cases)
    kept = [case for case, size in zip(cases, total, strict=True) if size <= GOLDEN_BYTES] or cases[:1]
    golden = Golden(max_abs=tolerance * _range(kept), cases=tuple(kept))
    size = len(golden.to_bytes())
    if size > Golden.LIMIT:
        raise Incompatible(
            f"golden set: one example and its answer take {show_size(size)}, the limit is {show_size(Golden.LIMIT)}: "
            "give smaller examples, or a model with smaller outputs"
        )
    return golden


def golden_set_fault(golden: Golden, results: Sequence[Result]) -> str | None:
    """Why results do not hold for a golden set; None when all cases do."""
    if len(results) != len(golden.cases):
        return f"{len(results)} answers to {len(golden.cases)} golden cases"
    for i, (case, result) in enumerate(zip(golden.cases, results, strict=True)):
        fault = golden_fault(case, result, golden.max_abs)
        if fault:
            return f"golden case {i}: {fault}"
    return None


def saboteur_verdicts(name: str, golden: Golden, results: Sequence[Result], decision: Decision) -> Sabotage:
    """What the gates said of a variant broken on purpose. Raises `Untrusted` when one lets it pass."""
    found = judge(golden, results, decision)
    if found.golden is None:
        raise Untrusted(
            f"saboteur {name!r}: the golden set accepts it, so it would accept a broken model on a device: "
            "use more varied test examples, or a model that tells its answers apart"
        )
    if found.accuracy is None:
        raise Untrusted(
            f"saboteur {name!r}: the accuracy gate accepts it ({decision.metric} drops by {decision.drop:.2f} points): "
            f"the source is no better than chance on these examples, or max_drop {decision.max_drop:g} is too wide"
        )
    return Sabotage(name=name, golden=found.golden, accuracy=found.accuracy)


def _case(row: Row, result: Result) -> GoldenCase:
    for name, values in result.outputs.items():
        if not np.isfinite(values).all():
            raise Incompatible(f"golden set: the variant's output {name} holds NaN or infinity")
    outputs = {name: to_tensor(values) for name, values in result.outputs.items()}
    if isinstance(row.example, str):
        return GoldenCase(text=row.example, outputs=outputs, labels=result.labels)
    inputs = {name: to_tensor(values) for name, values in row.example.items()}
    return GoldenCase(inputs=inputs, outputs=outputs, labels=result.labels)


def _range(cases: Sequence[GoldenCase]) -> float:
    """What a tolerance is a share of. Raises `Incompatible` where it is 0."""
    scores = all(set(case.outputs) == {SCORES} for case in cases)
    seen = [to_array(t).astype(np.float64) for case in cases for t in case.outputs.values()]
    seen = [values for values in seen if values.size]  # no word of a text, no scores
    high, low = max((v.max() for v in seen), default=0.0), min((v.min() for v in seen), default=0.0)
    # A single score has no range of its own.
    width = float(high - low) if scores and high > low else float(max(abs(high), abs(low)))
    if not width > 0:
        raise Incompatible("golden set: every output of the variant is 0 on it: use more varied test examples")
    return width
