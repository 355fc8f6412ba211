"""The two gates a variant must pass: accuracy against the source, and its golden set. Pure decisions.

The same functions judge the saboteur, which must fail both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.testset import Row
from wire.bundle import Golden, GoldenCase, golden_fault

GOLDEN_CASES = 16
_Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `n` texts, as a fraction with its 95 % Wilson interval."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The fraction."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927): honest near 0 and 1, where the normal interval is not."""
        p, n, z2 = self.value, self.n, _Z * _Z
        centre, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def accuracy(scores: Sequence[Sequence[float]], rows: Sequence[Row], labels: Sequence[str]) -> Accuracy:
    """How often the best score is that of the row's label. NaN is never right."""
    pairs = zip(scores, rows, strict=True)
    correct = sum(not any(map(math.isnan, s)) and labels[list(s).index(max(s))] == row.label for s, row in pairs)
    return Accuracy(correct=correct, n=len(rows))


def accuracy_fault(variant: Accuracy, source: Accuracy, max_drop: float) -> str | None:
    """Why a variant's accuracy does not hold against the source's on the same texts; None when it does.

    `max_drop` in points of a percent.
    """
    drop = (source.value - variant.value) * 100
    if drop <= max_drop:
        return None
    return (
        f"accuracy {variant.value:.4f} is {drop:.2f} points below the source's {source.value:.4f}, "
        f"at most {max_drop:g} are allowed"
    )


def golden_set(rows: Sequence[Row], scores: Sequence[Sequence[float]], tolerance: float) -> Golden:
    """The golden set of a variant: its own scores for the chosen rows."""
    cases = (GoldenCase(text=r.text, scores=tuple(round(v, 6) for v in s)) for r, s in zip(rows, scores, strict=True))
    return Golden(max_abs=tolerance, cases=tuple(cases))


def golden_set_fault(golden: Golden, scores: Sequence[Sequence[float]]) -> str | None:
    """Why scores do not hold for a golden set; None when all cases do."""
    for i, (case, got) in enumerate(zip(golden.cases, scores, strict=True)):
        fault = golden_fault(case, tuple(got), golden.max_abs)
        if fault:
            return f"golden case {i}: {fault}"
    return None
