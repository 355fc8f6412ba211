"""How sure a classification is: the meaning of `wire.pipeline.Calibration`. Pure; numpy comes with this module.

confidence(scores, calibration)             # of one answer: the probability that its label is right
confidences(rows_of_scores, calibration)    # of many, as the compiler asks
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wire.pipeline import Calibration

Array = NDArray[Any]
SMALLEST = 1e-30
"""Scores below count as this: the logarithm of 0 is none, and a softmax in float32 gives zeros."""


def confidence(scores: Array, calibration: Calibration) -> float:
    """Of one answer, from its scores `[classes]`."""
    return float(confidences(scores[None], calibration)[0])


def confidences(scores: Array, calibration: Calibration) -> Array:
    """float64 `[rows]` from 0 to 1, of scores `[rows, classes]`."""
    if calibration.method == "temperature":
        return np.asarray(tempered(scores, calibration.temperature).max(axis=-1))
    best = scores.max(axis=-1).astype(np.float64)
    return np.asarray(np.interp(best, calibration.scores, calibration.confidences))


def tempered(scores: Array, temperature: float) -> Array:
    """Probabilities as they are with every logit divided by a temperature, float64 of the same shape.

    That of a softmax is the softmax of its logarithms: the logits are not needed.
    """
    logits = np.log(np.maximum(scores.astype(np.float64), SMALLEST)) / temperature
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))
