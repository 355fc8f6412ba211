"""Whether devices together see or say something else than expected: a two-sample test whose unit is the device. Pure.

Requests of one device are alike, so a million of them from five devices are not a million opinions. The statistic is
Pearson's; its distribution comes from how much devices differ among each other, and days among each other, by the
second-order correction of Rao and Scott (The Annals of Statistics 12, 1984, 46 to 60) in its F form (Thomas and Rao,
JASA 82, 1987, 630 to 636), with fewer degrees of freedom in the denominator than there, as devices may be few.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fleet.drift.bins import DAMP, Vector, psi, shares
from fleet.drift.distributions import f_quantile, f_tail

FLOOR: Final = 0.1
"""A smaller index is never called drift: the customary bound of a change worth a look."""
STRICT: Final = 0.001
"""The index must be above what it exceeds so seldom where nothing moved."""
FEWEST_DEVICES: Final = 3
"""With fewer, nothing is known of how devices differ, nor whether one is like the reference by nature ..."""
FEWEST_DAYS: Final = 5
"""... and with fewer, nothing of how days do."""
FEWEST: Final = 50.0
"""Counts of all devices together."""
HEAVIEST: Final = 4.0
"""Times the median that one device may weigh: a loud one, or one that lies, is not the fleet."""
SAMPLED: Final = 200
"""Devices that the covariance is taken of; the shares are those of all."""
Matrix = list[list[float]]


@dataclass(frozen=True)
class Pair:
    """What one device saw, and what was expected of it: counts by bin, of the same sum."""

    seen: Vector
    expected: Vector


@dataclass(frozen=True)
class Compared:
    """`expected` and `seen` are shares by bin. `limit`: the index that would be drift. `p` is 1 below `FLOOR`."""

    devices: int
    n: float
    expected: tuple[float, ...]
    seen: tuple[float, ...]
    psi: float
    limit: float
    p: float


def compare(pairs: Sequence[Pair], days: Sequence[Vector], known: float | None = None) -> Compared | None:
    """Hold what devices saw against what was expected; None where there is too little of either.

    `days`: counts by bin of all devices on earlier days. `known`: how many examples the expectation comes from, where
    it is one for all of them, and not each device's own past.
    """
    total, devices = sum(sum(pair.seen) for pair in pairs), len(pairs)
    varied = [shares(day) for day in days if sum(day)]
    alone = devices < FEWEST_DEVICES
    if total < FEWEST or (alone and (known is not None or len(varied) < FEWEST_DAYS)):
        return None
    weighed = _weighed(pairs)
    n = sum(sum(pair.seen) for pair in weighed)
    seen = [sum(column) / n for column in zip(*(pair.seen for pair in weighed), strict=True)]
    expected = [sum(column) / n for column in zip(*(pair.expected for pair in weighed), strict=True)]
    index = psi(expected, seen)
    if index < FLOOR:
        return Compared(devices, total, tuple(expected), tuple(seen), index, FLOOR, 1.0)
    spread = _covariance(weighed, n, expected, seen)
    parts = [(_trace(spread, expected), min(devices, SAMPLED) - 1)] if devices >= FEWEST_DEVICES else []
    if len(varied) >= FEWEST_DAYS:
        by_day = _of_days(varied)
        spread = _add(spread, by_day)
        parts.append((_trace(by_day, expected), len(varied) - 1))
    if known is not None:
        spread = _add(spread, _multinomial(expected, known))
    # Devices held against themselves: both parts tell how one more day of theirs may differ, each by its own witnesses.
    freedom = sum(each for _, each in parts) if known is None else _freedom(parts)
    p, times = _tail(expected, seen, spread, freedom)
    return Compared(devices, total, tuple(expected), tuple(seen), index, max(FLOOR, index * times), p)


def _weighed(pairs: Sequence[Pair]) -> list[Pair]:
    most = HEAVIEST * statistics.median(sum(pair.seen) for pair in pairs)
    found = []
    for pair in pairs:
        n = sum(pair.seen)
        if n > most:
            pair = Pair([v * most / n for v in pair.seen], [v * most / n for v in pair.expected])  # noqa: PLW2901
        found.append(pair)
    return found


def _covariance(pairs: Sequence[Pair], n: float, expected: Vector, seen: Vector) -> Matrix:
    """The covariance of what was seen less what was expected, from how devices differ; never below that of chance."""
    chance = _multinomial([(e + q) / 2 for e, q in zip(expected, seen, strict=True)], n)
    count = len(pairs)
    if count < FEWEST_DEVICES:
        return chance
    off = [q - e for q, e in zip(seen, expected, strict=True)]
    some = pairs[:: -(-count // SAMPLED)]
    rows = []
    for pair in some:
        m = sum(pair.seen)
        rows.append([s - e - m * d for s, e, d in zip(pair.seen, pair.expected, off, strict=True)])
    scale = count / (len(some) - 1) / n**2
    bins = range(len(off))
    found = [[0.0] * len(off) for _ in bins]
    for i in bins:
        left = [row[i] for row in rows]
        for j in range(i + 1):
            value = scale * sum(a * row[j] for a, row in zip(left, rows, strict=True))
            found[i][j] = found[j][i] = value
    least, most = _trace(chance, expected), _trace(found, expected)
    return found if most >= least else _scaled(found, least / most) if most > 0 else chance


def _of_days(days: Sequence[Vector]) -> Matrix:
    """The covariance of one more day's shares, from how earlier days differ."""
    count = len(days)
    means = [sum(column) / count for column in zip(*days, strict=True)]
    rows = [[v - mean for v, mean in zip(day, means, strict=True)] for day in days]
    scale = (1 + 1 / count) / (count - 1)
    return [[scale * sum(row[i] * row[j] for row in rows) for j in range(len(means))] for i in range(len(means))]


def _multinomial(p: Vector, n: float) -> Matrix:
    """The covariance of the shares of `n` independent draws."""
    return [[(p[i] * (i == j) - p[i] * p[j]) / n for j in range(len(p))] for i in range(len(p))]


def _freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own (Satterthwaite, Biometrics Bulletin 2, 1946)."""
    whole = sum(variance for variance, _ in parts)
    squares = sum(variance * variance / freedom for variance, freedom in parts)
    return whole * whole / squares if squares > 0 else float(min(freedom for _, freedom in parts))


def _tail(expected: Vector, seen: Vector, spread: Matrix, freedom: float) -> tuple[float, float]:
    """How seldom chance moves as much, and how many times as much it moves with probability `STRICT`."""
    x2 = sum((q - e) ** 2 / (e + DAMP) for e, q in zip(expected, seen, strict=True))
    first = _trace(spread, expected)
    damped = [e + DAMP for e in expected]
    second = sum(v * v / (damped[i] * damped[j]) for i, row in enumerate(spread) for j, v in enumerate(row))
    if first <= 0 or second <= 0:
        return 1.0, 1.0
    k = first * first / second
    return f_tail(x2 / first, k, freedom), first * f_quantile(STRICT, k, freedom) / x2


def _trace(spread: Matrix, expected: Vector) -> float:
    return sum(spread[i][i] / (e + DAMP) for i, e in enumerate(expected))


def _add(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def _scaled(a: Matrix, by: float) -> Matrix:
    return [[v * by for v in row] for row in a]
