"""Mixed precision: when a quantized candidate fails, the layers that cost most accuracy go back to float.

How much a group of layers costs is seen with only that group quantized: its error is its own then. With only that
group in float, the errors of all others would hide what it gives back, most of all where two groups are each enough to
spoil the answers. Groups go back in that order, one more at each step, until the candidate holds the accuracy or no
longer pays.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.judge.gates import accuracy_fault
from compiler.plan.candidates import Candidate
from compiler.search.bench import Bench
from compiler.search.choose import Trial
from compiler.workshop.children import Failed

if TYPE_CHECKING:
    from wire.processing import Result

ROWS = 64
"""Examples on which the error of a group is measured: their order is wanted, no decision."""
MOST_STEPS = 8
"""Groups that may go back to float, and never more than half of them: beyond it the float graph is near enough."""


def mix(trial: Trial, bench: Bench, pays: Callable[[Trial], bool]) -> list[Trial]:
    """The steps from a failed candidate to one that holds, or to where it no longer pays; the last one may hold."""
    base = trial.candidate
    groups = float_groups(base, bench)
    order = by_error(base, groups, bench)
    steps: list[Trial] = []
    for n in range(1, min(len(order) // 2, MOST_STEPS) + 1):
        candidate = base.keeping(sorted(order[:n], key=groups.index))
        bench.report.more(2)
        with bench.report.stage(f"back to float: {candidate.name}", 2):
            (step,) = bench.try_all([candidate])
        steps.append(step)
        bench.report.note(f"{candidate.name}: {_told(step)}")
        if step.decision is None or step.holds or not pays(step):
            break
    return steps


def float_groups(base: Candidate, bench: Bench) -> list[str]:
    """The groups of layers of the float graph that a candidate's last pass quantizes, in the graph's order."""
    (made,) = bench.shop.make([base.beginning])
    if isinstance(made, Failed):
        return []
    return _groups(base, made.path)


def by_error(base: Candidate, groups: Sequence[str], bench: Bench) -> list[str]:
    """Groups by the error of the answers with only that one quantized, the largest first."""
    alone = [base.keeping([g for g in groups if g != group]) for group in groups]
    rows = spread_rows(len(bench.inputs.test.rows), ROWS)
    source = [bench.reference.results[i] for i in rows]
    bench.report.more(2 * len(groups))
    with bench.report.stage(f"how much each of {len(groups)} groups of layers costs {base.name}", 2 * len(groups)):
        answers = bench.answers(alone, rows)
    errors = {g: error(found, source) for g, found in zip(groups, answers, strict=True)}
    return sorted(groups, key=lambda g: -errors[g])


def error(found: Sequence[Result] | Failed, source: Sequence[Result]) -> float:
    """How far answers are from the source's: the mean of the first output's distances, infinite where there is none."""
    import numpy as np

    if isinstance(found, Failed):
        return math.inf
    total = 0.0
    for got, expected in zip(found, source, strict=True):
        mine, theirs = (next(iter(r.outputs.values())).astype(np.float64) for r in (got, expected))
        total += float(np.abs(mine - theirs).mean()) if mine.shape == theirs.shape else math.inf
    return math.inf if math.isnan(total) else total / len(source)


def spread_rows(count: int, most: int) -> list[int]:
    """At most `most` numbers of rows, evenly from everywhere in the file."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def _groups(base: Candidate, graph: Path) -> list[str]:
    if base.passes[0].name.startswith("litert."):
        from compiler.passes import litert_quantize

        return litert_quantize.groups(graph)
    from compiler.passes import onnx_groups

    return onnx_groups.groups(graph)


def _told(trial: Trial) -> str:
    if trial.decision is None:
        return trial.fault or ""
    return accuracy_fault(trial.decision) or "it holds"
