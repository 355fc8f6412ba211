"""Is a variant as good as its source? The paired comparison on the same examples, with three outcomes. Pure.

    needed(max_drop=1.0, confidence=0.95, changed=CHANGED)      # examples that the question asks for
    decide(source, variant, max_drop=1.0, confidence=0.95, metric="accuracy").outcome

Both interval methods hold when next to nothing changed, which is the usual case and the one where the textbook's
interval has the width 0:

* Right or wrong (values 0 and 1): the score interval of Tango, "Equivalence test and confidence interval for the
  difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998), 891-908, here with a
  continuity correction of half an example. Without it the interval errs up to 6.0 % of the time where it says 5 %;
  with it, at most what it says (`tests/compiler/test_paired.py` sums the exact probabilities).
* Values in between (cosines, shares of words): a betting interval, Waudby-Smith and Ramdas, "Estimating means of
  bounded random variables by betting", Journal of the Royal Statistical Society B 86 (2024), 1-27, their
  predictable plug-in bets. Not Student's t: what quantization breaks is often a few examples wholly and the rest not
  at all, and of those few t knows nothing until it has seen them. 250 like cosines make its interval a point, though a
  model that fails on one example in a hundred shows none of it in 250 with probability 8 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist

from wire.evidence import Decision, Outcome

CHANGED = 0.04
"""Share of examples whose answer turns from right to wrong or back, as planned before anything is measured.

Seen with MiniLM: int8 changes 0.5 to 4 % of the answers, 4 bit 8 %. With less the plan asks for too many examples, with
more the outcome is `inconclusive` and says so.
"""
POWER = 0.8
"""How sure a variant that is as good as its source should be of passing."""
NEVER = 10**9
"""What `needed` answers where no number of examples would do."""
_CORRECTION = 0.5
_BET = 0.75
"""Largest share of the capital in one bet; Waudby-Smith and Ramdas advise 1/2 or 3/4."""
_SEED = 1998
_STEPS = 60


def needed(max_drop: float, confidence: float, changed: float) -> int:
    """Examples with which a variant as good as its source passes with probability `POWER`.

    `changed` is the share of examples whose value changes, as often to the better as to the worse; `max_drop` in
    points. The formula is Nam's ("Establishing equivalence of two treatments and sample size requirements in
    matched-pairs design", Biometrics 53 (1997), 1422-1430), with the correction of half an example: the smallest n with

        n * max_drop - 1/2 >= sqrt(n) * (z(confidence) * sqrt(v) + z(POWER) * sqrt(changed))

    where v is the variance of a difference that the score test expects if the drop were `max_drop`. `NEVER` where
    `max_drop` is 0 or next to it.
    """
    limit = max_drop / 100
    if limit < 1 / NEVER:
        return NEVER
    if limit >= 1:
        return 1
    at_limit = 2 * _gained_share(changed / 2, changed / 2, limit) + limit * (1 - limit)
    spread = _z(confidence) * math.sqrt(at_limit) + NormalDist().inv_cdf(POWER) * math.sqrt(changed)
    root = (spread + math.sqrt(spread**2 + 4 * _CORRECTION * limit)) / (2 * limit)
    return min(NEVER, math.ceil(root**2))


def decide(
    source: Sequence[float], variant: Sequence[float], max_drop: float, confidence: float, metric: str
) -> Decision:
    """Compare two lists of values from 0 to 1, one for each example, in the same order.

    `max_drop` is in points (hundredths of the metric). Raises `ValueError` for lists of different length, empty ones
    and values outside of 0 to 1.
    """
    if not source or not all(0.0 <= v <= 1.0 for v in (*source, *variant)):  # a NaN is not within them
        raise ValueError("paired comparison: expected one value from 0 to 1 for each of one or more examples")
    drops = [a - b for a, b in zip(source, variant, strict=True)]
    low, high = interval(drops, confidence)
    changed = sum(drop != 0 for drop in drops) / len(drops)
    return Decision(
        metric=metric,
        max_drop=max_drop,
        confidence=confidence,
        n=len(drops),
        needed=needed(max_drop, confidence, CHANGED),
        changed_planned=CHANGED,
        drop=100 * math.fsum(drops) / len(drops),
        low=100 * low,
        high=100 * high,
        outcome=_outcome(100 * low, 100 * high, max_drop),
        changed=changed,
        needed_seen=needed(max_drop, confidence, max(changed, 1 / len(drops))),
    )


def interval(drops: Sequence[float], confidence: float) -> tuple[float, float]:
    """The two-sided interval of the mean of drops from -1 to 1: Tango's where all are -1, 0 or 1, else by betting."""
    if set(drops) <= {-1.0, 0.0, 1.0}:
        return score_interval(drops.count(1.0), drops.count(-1.0), len(drops), _z(confidence))
    return betting_interval(drops, 1 - confidence)


def score_interval(lost: int, gained: int, n: int, z: float, correction: float = _CORRECTION) -> tuple[float, float]:
    """Tango's interval of `(lost - gained) / n`: the drops that the score test does not refuse at `z`."""
    return -_score_bound(gained, lost, n, z, correction), _score_bound(lost, gained, n, z, correction)


def betting_interval(drops: Sequence[float], alpha: float) -> tuple[float, float]:
    """Waudby-Smith and Ramdas' interval of the mean of numbers from -1 to 1; it errs with probability `alpha` at most.

    The bets go through the examples in an order that is shuffled, always in the same way: a file sorted by label
    would not be a sample at its beginning.
    """
    shares = [(1 + d) / 2 for d in drops]
    random.Random(_SEED).shuffle(shares)  # noqa: S311  an order, no secret
    mirrored = [1 - s for s in shares]
    return 1 - 2 * _betting_bound(mirrored, alpha / 2), 2 * _betting_bound(shares, alpha / 2) - 1


def _outcome(low: float, high: float, max_drop: float) -> Outcome:
    if high <= max_drop:
        return "pass"
    return "fail" if low > max_drop else "inconclusive"


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _score_bound(lost: int, gained: int, n: int, z: float, correction: float) -> float:
    """The upper end: the largest drop that the score test does not refuse."""

    def refused(drop: float) -> bool:
        variance = n * (2 * _gained_share(lost / n, gained / n, drop) + drop * (1 - drop))
        distance = n * drop - (lost - gained) - correction
        return distance > 0 and distance >= z * math.sqrt(max(0.0, variance))

    return _first(refused, (lost - gained) / n, 1.0)


def _gained_share(lost: float, gained: float, drop: float) -> float:
    """The likeliest share of gained examples if the drop were this, from the shares seen: Tango's equation."""
    b = (2 - lost + gained) * drop - lost - gained
    return (math.sqrt(max(0.0, b * b + 8 * gained * drop * (1 - drop))) - b) / 4


def _betting_bound(values: Sequence[float], alpha: float) -> float:
    """An upper bound of the mean of numbers from 0 to 1.

    Whoever bets that the mean is below m multiplies a capital of 1 by `1 - bet * (value - m)` at each value. While the
    mean is m or more, it ever reaches `1 / alpha` with probability `alpha` at most (Ville): if it does, m is refused.
    """
    bets = _bets(values, alpha)
    goal = -math.log(alpha)

    def refused(mean: float) -> bool:
        largest = _BET / (1 - mean) if mean < 1 else math.inf
        capital = 0.0
        for value, bet in zip(values, bets, strict=True):
            capital += math.log1p(-min(bet, largest) * (value - mean))
            if capital >= goal:
                return True
        return False

    return _first(refused, math.fsum(values) / len(values), 1.0)


def _bets(values: Sequence[float], alpha: float) -> list[float]:
    """The plug-in bets: each from the variance of the values before it, as if 1/4 had been seen once."""
    bets: list[float] = []
    mean, squares = 0.5, 0.25
    for i, value in enumerate(values, 1):
        bets.append(math.sqrt(2 * math.log(1 / alpha) * i / (len(values) * squares)))
        mean += (value - mean) / (i + 1)
        squares += (value - mean) ** 2
    return bets


def _first(refused: Callable[[float], bool], low: float, high: float) -> float:
    """Where `refused` turns true between `low` and `high`, from above: it stays true at all that is larger."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    return high
