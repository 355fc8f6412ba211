"""Whether a model in shadow says the same as the one that answers. Arrays in, yes or no out.

One place of a request is compared, chosen in turn where an answer has many: the word of a text, the frame of a sound.
So the share that agrees is that of words or frames, and the unit stays the request.

    labels        the same label
    embeddings    cosine of at least `COSINE`: below, neighbours in an index of the old vectors change
    tensors       every value within `WITHIN` of the largest one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from wire.pipeline import EMBEDDING
from wire.processing import Array, Arrays, Result

COSINE: Final = 0.98
WITHIN: Final = 0.05


def agrees(labels: Sequence[str], outputs: Arrays, other: Result, turn: int) -> bool:
    """Whether `other` agrees with the answer of these labels, or of these outputs where it has none."""
    if labels or other.labels:
        at = turn % max(1, len(labels))
        return at < len(labels) and at < len(other.labels) and labels[at] == other.labels[at]
    if outputs.keys() != other.outputs.keys():
        return False
    near = _is_near if EMBEDDING in outputs else _is_within
    return all(
        _fits(values, other.outputs[name]) and near(values, other.outputs[name]) for name, values in outputs.items()
    )


def _fits(a: Array, b: Array) -> bool:
    return a.shape == b.shape


def _is_near(a: Array, b: Array) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(a.dot(b) >= COSINE * np.linalg.norm(a) * np.linalg.norm(b))


def _is_within(a: Array, b: Array) -> bool:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.abs(a - b).max(initial=0.0) <= WITHIN * np.abs(a).max(initial=0.0))
