"""Tests that may be looked at after every device, and stopped at any moment. Pure; the math module only.

    wealth = stake(wealth, rank_bets(place))     # a device has been ranked among its peers
    log_evidence(wealth) >= math.log(1 / alpha)  # chance alone reaches this once in 1 / alpha rollouts at most

Each bets against "no worse than its peers": a gambler who starts with 1 and cannot expect to win has ever 1 / alpha or
more with a probability of at most alpha (Ville 1939; Shafer and Vovk 2019, "Game-theoretic foundations for probability
and finance"). This holds however often one looks and whenever one stops.

* `rank_bets`: the power martingale (Vovk, Nouretdinov and Gammerman 2003, "Testing exchangeability on-line"), with its
  random tie-breaking integrated out. The place of a device among its peers is uniform if the models are alike, whatever
  the distribution: heavy tails, outliers and a busy hour that is everybody's change nothing.
* `share_bets`: betting on means of values from 0 to 1 (Waudby-Smith and Ramdas 2024, JRSS B 86:1, "Estimating means of
  bounded random variables by betting"), for absolute limits.
* `mean`: an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, Annals of Statistics
  52:2613, "Time-uniform central limit theory and asymptotic confidence sequences"), for shown shares; no test uses it.
* `median`: a confidence sequence for a median, from the beta-binomial mixture of sign tests (Robbins 1970; Howard and
  Ramdas 2022, Bernoulli 28:1704, "Sequential estimation of quantiles").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POWERS = (0.05, 0.2, 0.5)
"""How bold the bets on ranks are, the boldest first. The wealth is that of a gambler who divides it over them."""
STAKES = (0.1, 0.3, 0.6)
"""Shares of the wealth that the bets on a mean risk."""
LEAST_DEVICES = 5
_TUNED_FOR = 20
"""Devices at which the interval of a mean is as short as can be."""
Wealth = tuple[float, ...]
"""Logarithms, one for each way to bet; () before the first."""


@dataclass(frozen=True)
class Place:
    """Where a device stands among those ranked with it, from 0 (the worst of all) to 1; `low` < `high` span ties."""

    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """A figure with its interval. None: too few values for one."""

    value: float
    low: float | None
    high: float | None
    n: int


def place(value: float, peers: Sequence[float]) -> Place:
    """The place of a value among its peers, higher being worse; without peers, by its sign (a coin's, if symmetric)."""
    if not peers:
        return Place(0, 1) if value == 0 else Place(0, 0.5) if value > 0 else Place(0.5, 1)
    worse = sum(peer > value for peer in peers)
    ties = sum(peer == value for peer in peers)
    return Place(worse / (len(peers) + 1), (worse + ties + 1) / (len(peers) + 1))


def rank_bets(where: Place) -> tuple[float, ...]:
    """What each bet pays, as logarithms. Over all places without ties the payments average exactly 1."""
    width = where.high - where.low
    return tuple(math.log((where.high**power - where.low**power) / width) for power in POWERS)


def share_bets(value: float, limit: float) -> tuple[float, ...]:
    """What the bets pay that the mean of values from 0 to 1 is above `limit` (above 0), as logarithms."""
    return tuple(math.log1p(stake * (value - limit) / limit) for stake in STAKES)


def stake(wealth: Wealth, bets: Sequence[float]) -> Wealth:
    """The wealth after a bet."""
    return tuple(a + b for a, b in zip(wealth or (0.0,) * len(bets), bets, strict=True))


def log_evidence(wealth: Wealth) -> float:
    """The logarithm of the whole wealth, a mean over the ways to bet: an e-value."""
    if not wealth:
        return 0.0
    top = max(wealth)
    return top + math.log(sum(math.exp(w - top) for w in wealth) / len(wealth))


def median(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median, and an interval that holds the true one at all looks together with this probability.

    Order statistics; no assumption but independence. At 95 % it needs eight values. Raises ValueError for none.
    """
    ordered, n = sorted(values), len(values)
    if not n:
        raise ValueError("a median of nothing")
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    outside = _outside(n, 1 - confidence)
    if outside is None:
        return Interval(middle, None, None, n)
    return Interval(middle, ordered[outside], ordered[n - 1 - outside], n)


def mean(parts: Sequence[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """The share `sum of hits / sum of n` of (hits, n) by device, and an interval that holds it at all looks together.

    Devices are the units: the variance is that of a ratio over clusters (Cochran 1977, "Sampling techniques", 6.3),
    never below that of as many independent answers. It is true for many devices; with fewer than `LEAST_DEVICES` there
    is no interval. Raises ValueError for no answer.
    """
    hits, total, t = sum(h for h, _ in parts), sum(n for _, n in parts), len(parts)
    if total <= 0:
        raise ValueError("a share of nothing")
    value = hits / total
    if t < LEAST_DEVICES:
        return Interval(value, None, None, t)
    clusters = sum((h - value * n) ** 2 for h, n in parts) / (t - 1) / (total / t) ** 2
    smoothed = (hits + 0.5) / (total + 1)
    variance = max(clusters, smoothed * (1 - smoothed) / total * t)
    alpha = 1 - confidence
    tuned = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / _TUNED_FOR
    spread = t * tuned + 1
    half = math.sqrt(variance * 2 * spread / (t * t * tuned) * math.log(math.sqrt(spread) / alpha))
    return Interval(value, max(0.0, value - half), min(1.0, value + half), t)


def fewest(peers: int, alpha: float) -> int:
    """How many devices, each the worst among so many peers, make evidence of 1 / alpha."""
    wealth: Wealth = ()
    bets = rank_bets(place(1.0, [0.0] * peers))
    for n in range(1, 1000):
        wealth = stake(wealth, bets)
        if log_evidence(wealth) >= -math.log(alpha):
            return n
    raise ValueError(f"alpha {alpha}: too small")


def _outside(n: int, alpha: float) -> int | None:
    """How many values of n may be left off at either end: the largest k with P(k or fewer below) still unlikely.

    Under a true median the number below it is that of heads; the mixture of its likelihood ratios over all biases is
    2**n * B(k + 1, n - k + 1).
    """
    for k in range(n // 2, -1, -1):
        mixture = n * math.log(2) + math.lgamma(k + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 2)
        if mixture >= -math.log(alpha):
            return k
    return None
