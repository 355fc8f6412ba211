"""How often a model's answers agree with the reference, and how often they are right. Pure; plain numbers.

    agreement(counts)      # the share of answers that the reference gives, too: no claim about the truth
    accuracy(counts)       # the share that is right: the same, corrected by the answers with a true label

The reference errs as well, so agreement is not accuracy. Prediction-powered inference (Angelopoulos et al. 2023,
Science 382:669, with the tuning of arXiv 2311.01453) makes accuracy of it: the mean of a cheap figure, here agreement,
over the many answers that were checked, plus the mean of what it is off by, over the few with a true label. The
interval is right whatever the reference is worth; the better it is, the narrower.

Answers are weighed by strata of confidence, because unsure ones are checked more often. Labels must be given without
looking at the answer: an app whose users only complain measures complaints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from wire.agreement import COUNTS, Agreement, merge

FEWEST = 30
"""Labelled answers of a stratum below which it is taken together with its neighbour."""


@dataclass(frozen=True)
class Estimate:
    """A share from 0 to 1 with its interval. `n` checked answers stand behind it, `labelled` of them with the truth."""

    value: float
    low: float
    high: float
    n: int
    labelled: int = 0


def agreement(counts: Iterable[Agreement], confidence: float = 0.95) -> Estimate | None:
    """The share of all answers with which the reference agrees; None while nothing was checked."""
    strata = _pooled(merge(counts), lambda s: s.checked >= 1)
    if not strata:
        return None
    parts = [(one.agreed / one.checked, _bernoulli(one.agreed, one.checked)) for one in strata]
    return _joined(strata, parts, confidence, sum(one.checked for one in strata))


def accuracy(counts: Iterable[Agreement], confidence: float = 0.95) -> Estimate | None:
    """The share of all answers that is right; None with fewer than `FEWEST` true labels."""
    strata = _pooled(merge(counts), lambda s: s.labelled >= FEWEST)
    if not strata:
        return None
    parts = [_corrected(one) for one in strata]
    n, labelled = sum(one.checked for one in strata), sum(one.labelled for one in strata)
    return _joined(strata, parts, confidence, n, labelled)


def _corrected(one: Agreement) -> tuple[float, float]:
    """Mean and its variance by prediction-powered inference, tuned so that a useless reference does no harm.

    Y is 1 where the model is right, f where the reference agrees. n answers have both, N more have f alone. The mean is
    that of Y, plus the tuning times what f is on the N above what it is on the n.
    """
    n, more = one.labelled, one.checked - one.labelled
    right, agreed = one.right_agreed + one.right_differed, one.right_agreed + one.wrong_agreed
    y, f = right / n, agreed / n
    # For the spread, half an answer more in each of the four counts: of a few hundred answers of a good model hardly
    # any is wrong, and an interval made of those alone is too short.
    wide = n + 2
    y_wide, f_wide = (right + 1) / wide, (agreed + 1) / wide
    spread, cov = f_wide * (1 - f_wide), (one.right_agreed + 0.5) / wide - y_wide * f_wide
    tuned = min(1.0, max(0.0, cov / spread * more / (n + more)))
    rest = (one.agreed - agreed) / more if more else f
    off = y_wide * (1 - y_wide) + tuned**2 * spread - 2 * tuned * cov
    return y + tuned * (rest - f), off / n + (tuned**2 * _bernoulli(one.agreed - agreed, more) if more else 0.0)


def _bernoulli(hits: int, n: int) -> float:
    """The variance of a share, with half a hit and half a miss added: of none and of all it would be 0."""
    p = (hits + 0.5) / (n + 1)
    return p * (1 - p) / n


def _joined(
    strata: Sequence[Agreement],
    parts: Sequence[tuple[float, float]],
    confidence: float,
    n: int,
    labelled: int = 0,
) -> Estimate:
    """The strata by their share of all answers, with a normal interval."""
    total = sum(one.answers for one in strata)
    shares = [one.answers / total for one in strata]
    value = min(1.0, max(0.0, sum(share * mean for share, (mean, _) in zip(shares, parts, strict=True))))
    variance = sum(share**2 * var for share, (_, var) in zip(shares, parts, strict=True))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), n, labelled)


def _pooled(strata: Sequence[Agreement], enough: Callable[[Agreement], bool]) -> list[Agreement]:
    """Strata with enough in each: one with less is taken together with the next, the last with the one before.

    None where all together have not enough. Counts that cannot be, from devices that lie, are left out.
    """
    pools: list[Agreement] = []
    for one in (s for s in strata if _sound(s)):
        last = pools[-1] if pools else None
        if last is not None and not enough(last):
            pools[-1] = _sum(last, one)
        else:
            pools.append(one)
    if len(pools) > 1 and not enough(pools[-1]):
        pools[-2:] = [_sum(*pools[-2:])]
    return pools if pools and enough(pools[-1]) else []


def _sum(a: Agreement, b: Agreement) -> Agreement:
    return Agreement(stratum=a.stratum, **{name: getattr(a, name) + getattr(b, name) for name in COUNTS})


def _sound(one: Agreement) -> bool:
    agreed, differed = one.right_agreed + one.wrong_agreed, one.right_differed + one.wrong_differed
    return agreed <= one.agreed and differed <= one.checked - one.agreed and one.checked <= one.answers
