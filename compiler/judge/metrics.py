"""How good answers are, example by example: what the paired comparison and the table of classes are made of. Pure.

    values(results, examples.rows, reference=source_results)        # one number from 0 to 1 for each row
    name(examples.rows)                                             # what that number is called

* Rows with a label: 1 or 0, right or wrong; with a label for each word or frame, the share of them that is right
  (`accuracy`).
* Rows without: the same against the source's own labels; for a source without labels, or with one only, how alike the
  outputs are (`agreement`).

An answer with a NaN is never right and never an error: a broken model is to be measured like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.examples.examples import Row
from wire.evidence import ClassChange
from wire.pipeline import SCORES
from wire.processing import Array, Result


def labelled(rows: Sequence[Row]) -> bool:
    """Whether the rows of a file have labels: all of them have, or none."""
    return rows[0].label is not None


def name(rows: Sequence[Row]) -> str:
    """What the numbers are called: `accuracy` where the rows have labels, else `agreement`."""
    return "accuracy" if labelled(rows) else "agreement"


def values(results: Sequence[Result], rows: Sequence[Row], reference: Sequence[Result]) -> list[float]:
    """A number from 0 to 1 for each row; `reference` are the source's results."""
    triples = zip(results, rows, reference, strict=True)
    return [_value(result, _expected(row, source), source) for result, row, source in triples]


def class_changes(source: Sequence[Result], variant: Sequence[Result], rows: Sequence[Row]) -> tuple[ClassChange, ...]:
    """What became of each label, by its name; words and frames count one by one. Empty where nothing has a label."""
    counts: dict[str, list[int]] = {}
    for before, after, row in zip(source, variant, rows, strict=True):
        expected = _expected(row, before)
        for label, was, now in zip(expected, _marks(before, expected), _marks(after, expected), strict=True):
            count = counts.setdefault(label, [0, 0, 0, 0])
            for i, seen in enumerate((True, was, now, was and now)):
                count[i] += seen
    return tuple(
        ClassChange(label=label, n=n, source=was, variant=now, both=both)
        for label, (n, was, now, both) in sorted(counts.items())
    )


def _expected(row: Row, source: Result) -> tuple[str, ...]:
    """The right labels; empty where the outputs themselves are compared."""
    if row.label is not None:
        return (row.label,) if isinstance(row.label, str) else row.label
    # One label only is always the best one: it says nothing, its score does.
    return source.labels if source.labels and source.outputs[SCORES].shape[-1] > 1 else ()


def _value(result: Result, expected: tuple[str, ...], source: Result) -> float:
    if expected:
        return sum(_marks(result, expected)) / len(expected)
    return min((_likeness(result.outputs.get(key), values) for key, values in source.outputs.items()), default=0.0)


def _marks(result: Result, expected: tuple[str, ...]) -> list[bool]:
    """For each expected label, whether the answer gives it. A word that the model cut off is wrong."""
    scores = result.outputs.get(SCORES)
    if scores is None or not expected:
        return [False] * len(expected)
    sound = np.isfinite(np.atleast_2d(scores)).all(axis=-1)
    given = [label if good else None for label, good in zip(result.labels, sound, strict=False)]
    given += [None] * (len(expected) - len(given))
    return [got == label for got, label in zip(given, expected, strict=False)]


def _likeness(got: Array | None, expected: Array) -> float:
    """Zegers' and ten Berge's coefficient of identity, `2ab / (aa + bb)`, 0 where it is below or is no number.

    It is the cosine of vectors of one length, such as normalised embeddings, and lower for another length: the cosine
    of a single number or of a score that is half of what it was is 1. ("A family of association coefficients for
    metric scales", Psychometrika 50 (1985), 17-24.)
    """
    if got is None or got.shape != expected.shape:
        return 0.0
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    with np.errstate(all="ignore"):
        squares = float(a @ a + b @ b)
        found = 1.0 if squares == 0 else 2 * float(a @ b) / squares
    return min(1.0, max(0.0, found)) if np.isfinite(found) else 0.0
