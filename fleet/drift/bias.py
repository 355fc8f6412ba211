"""Bias: whether a cohort gets worse or less sure answers than the rest. Pure.

A cohort is the devices of a tag. What is compared are means over all windows that are kept, with the device as the
unit: the variance of a ratio of sums over clusters (Cochran, Sampling Techniques, 1977, chapter 6), and Welch's t for
the difference. Intervals are Wilson's, at the number of independent answers that would vary as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fleet.drift.distributions import t_tail
from fleet.drift.judging import strata
from fleet.drift.values import ALL, Key, Member, Score
from fleet.drift.words import where
from fleet.intervals import wilson
from wire.sketch import BINS

FEWEST_DEVICES: Final = 5
"""On either side."""
FEWEST: Final = 30.0
"""Answers with feedback, or with a confidence, on either side."""
LIMIT: Final = 0.05
"""A smaller difference is not called bias: five points."""
What = Literal["accuracy", "sureness"]
_NOUNS: Final = {"accuracy": "accuracy by feedback", "sureness": "mean confidence"}


@dataclass(frozen=True)
class Mean:
    """A mean of answers from 0 to 1 over `devices`, with its interval; `variance` is that of the mean."""

    value: float
    low: float
    high: float
    variance: float
    devices: int
    n: float


def judge_bias(digest: str, members: Sequence[Member]) -> list[Score]:
    """Each tag against the devices without it, where there is enough of both."""
    found = []
    for stratum, inside in sorted(strata(members).items()):
        if stratum == ALL or not stratum.startswith("tag:"):
            continue
        ids = {m.device for m in inside}
        rest = [m for m in members if m.device not in ids]
        for what in ("accuracy", "sureness"):
            score = _score(Key(digest, stratum, what, "rest"), inside, rest, what)
            if score is not None:
                found.append(score)
    return found


def mean_of(members: Sequence[Member], what: What) -> Mean | None:
    """The mean over some devices; None where there is too little."""
    pairs = [pair for m in members if (pair := _sums(m, what))[1] > 0]
    n = sum(count for _, count in pairs)
    if len(pairs) < FEWEST_DEVICES or n < FEWEST:
        return None
    value = sum(total for total, _ in pairs) / n
    k = len(pairs)
    clustered = k / (k - 1) * sum((total - count * value) ** 2 for total, count in pairs) / n**2
    p = (value * n + 0.5) / (n + 1)
    variance = max(clustered, p * (1 - p) / n if what == "accuracy" else 0.0)
    low, high = wilson(value, p * (1 - p) / variance if variance > 0 else n)
    return Mean(value, low, high, variance, k, n)


def _sums(member: Member, what: What) -> tuple[float, float]:
    look = member.today.plus(member.recent).plus(member.past)
    if what == "accuracy":
        return look.correct, look.feedback
    return sum((int(i) + 0.5) / BINS * n for i, n in look.confidence.items()), sum(look.confidence.values())


def _score(key: Key, inside: Sequence[Member], rest: Sequence[Member], what: What) -> Score | None:
    a, b = mean_of(inside, what), mean_of(rest, what)
    if a is None or b is None:
        return None
    variance = a.variance + b.variance
    freedom = variance**2 / (a.variance**2 / (a.devices - 1) + b.variance**2 / (b.devices - 1)) if variance else 1.0
    off = a.value - b.value
    p = t_tail(off / math.sqrt(variance), freedom) if variance else float(off == 0)
    words = f"{_NOUNS[what]} {_interval(a)}, the rest {_interval(b)}, {where(key.stratum, (), a.devices)}"
    return Score(key, a.devices, a.n, abs(off), LIMIT, p, words)


def _interval(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} % ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
