"""How sure a variant is, learnt from labelled examples that neither source nor test knows. Pure.

    fitted = fit(Answers(scores, right, spared), softmax=True, target_error=0.5)
    fitted.calibration                  # travels in pipeline.json
    fitted.error, fitted.error_before   # expected calibration error: evidence, never in the bundle

Two ways are tried: one temperature, by the likelihood of the true labels, and a curve that never falls, by the pool of
adjacent violators. The one that is better on rows which it was not fitted to is fitted to all of them. The figures are
of rows that the fit did not see, too: each half of the rows is judged by what was learnt of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from wire.confidence import Array, confidences, tempered
from wire.pipeline import Calibration

FEWEST = 200
"""Rows below which nothing is fitted: the rarest thing counted, an answer needlessly wrong, is one in hundreds."""
BINS = 15
"""Of the expected calibration error, of equal width (Guo et al. 2017)."""
_DIGITS, _FINE = 6, 1e6
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 60
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Answers:
    """Of `n` rows: a variant's scores `[n, classes]`, the place of the true label, and where asking would have helped.

    `spared` is True where the variant is wrong and the source right. All arrays have `n` rows.
    """

    scores: Array
    true: Array
    spared: Array

    @property
    def right(self) -> Array:
        """Where the best label is the true one."""
        return np.asarray(self.scores.argmax(axis=-1) == self.true)

    def part(self, rows: Array) -> Answers:
        """Some of the rows."""
        return Answers(self.scores[rows], self.true[rows], self.spared[rows])


@dataclass(frozen=True)
class Fitted:
    """A calibration with what is known of it: expected calibration errors, and the share of answers worth asking for.

    `error_before` is that of the scores as they came; `n` rows stand behind all three.
    """

    calibration: Calibration
    n: int
    error_before: float
    error: float
    escalated: float


Fit = Callable[[Answers], Calibration]


def fit(answers: Answers, *, softmax: bool, target_error: float) -> Fitted:
    """The better way for these answers, at least `FEWEST`. Scores of a softmax alone have a temperature."""
    ways: list[Fit] = [temperature, isotonic] if softmax else [isotonic]
    held_out = [_held_out(way, answers) for way in ways]
    losses = [_log_loss(found, answers.right) for found in held_out]
    best = losses.index(min(losses))
    calibration = ways[best](answers)
    sure = confidences(answers.scores, calibration)
    chosen = replace(calibration, threshold=threshold(sure, answers.spared, target_error), target_error=target_error)
    return Fitted(
        calibration=chosen,
        n=len(answers.true),
        error_before=calibration_error(answers.scores.max(axis=-1), answers.right),
        error=calibration_error(held_out[best], answers.right),
        escalated=float((sure < chosen.threshold).mean()),
    )


def threshold(sure: Array, spared: Array, target_error: float) -> float:
    """The lowest confidence that stays on the device: at most `target_error` of 100 answers are needlessly wrong there.

    Between two rows, so that it does not stand on one; 0 where nothing need be asked, and never above 1.
    """
    order = np.argsort(sure, kind="stable")
    ordered = sure[order].astype(np.float64)
    left = np.append(np.cumsum(spared[order][::-1])[::-1], 0)  # needlessly wrong from each row on
    allowed = int(target_error / 100 * len(sure) + 1e-9)
    first = int(np.argmax(left <= allowed))
    if first == 0:
        return 0.0
    last = float(ordered[first - 1])
    above = ordered[ordered > last]  # rows as sure as the last one that is asked for are asked for, too
    between = (last + float(above[0])) / 2 if len(above) else 1.0
    return min(1.0, math.ceil(between * _FINE) / _FINE)


def calibration_error(sure: Array, right: Array) -> float:
    """Expected calibration error: how far confidence and share of right answers are apart, the mean over the rows."""
    places = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    off = np.bincount(places, sure - right.astype(np.float64), BINS)
    return float(np.abs(off).sum() / len(sure))


def temperature(answers: Answers) -> Calibration:
    """The temperature under which the true labels are the likeliest: golden-section search, for the loss is convex."""

    def loss(cold: float) -> float:
        chances = tempered(answers.scores, 1 / cold)[np.arange(len(answers.true)), answers.true]
        return float(-np.log(np.maximum(chances, 1e-12)).mean())

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(_STEPS):
        width = _GOLDEN * (high - low)
        low, high = (low, low + width) if loss(high - width) < loss(low + width) else (high - width, high)
    return Calibration(method="temperature", temperature=round(2 / (low + high), 4), threshold=0.0, target_error=0.0)


def isotonic(answers: Answers) -> Calibration:
    """The curve that never falls and is nearest to right and wrong, through the middle of each pool.

    No share is believed to be 0 or 1: with `n` rows it lies between 1/(n+2) and (n+1)/(n+2), Laplace's rule.
    """
    best, right = answers.scores.max(axis=-1).astype(np.float64), answers.right.astype(np.float64)
    pools: list[tuple[float, float, int]] = []  # sum of scores, of right answers, rows
    for score in np.unique(best.round(_DIGITS)):
        same = best.round(_DIGITS) == score
        pool = (float(score * same.sum()), float(right[same].sum()), int(same.sum()))
        while pools and pools[-1][1] * pool[2] >= pool[1] * pools[-1][2]:  # its share is not below the next one's
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    n = len(best)
    shares = [min(max(pool[1] / pool[2], 1 / (n + 2)), (n + 1) / (n + 2)) for pool in pools]
    points = dict(zip((round(pool[0] / pool[2], _DIGITS) for pool in pools), shares, strict=True))
    return Calibration(
        method="isotonic",
        scores=tuple(points),
        confidences=tuple(round(share, _DIGITS) for share in points.values()),
        threshold=0.0,
        target_error=0.0,
    )


def _held_out(way: Fit, answers: Answers) -> Array:
    """The confidence of each row by what was learnt of the other half of the rows."""
    even = np.arange(len(answers.true)) % 2 == 0
    sure = np.empty(len(answers.true))
    for part in (even, ~even):
        sure[part] = confidences(answers.scores[part], way(answers.part(~part)))
    return sure


def _log_loss(sure: Array, right: Array) -> float:
    chances = np.clip(np.where(right, sure, 1 - sure), 1e-12, 1)
    return float(-np.log(chances).mean())
