"""Tails of the F and t distributions, without scipy. Pure.

By the continued fraction of the regularized incomplete beta function as in Press and others, Numerical Recipes (3rd
edition, 2007), section 6.4; NIST DLMF 8.17.
"""

from __future__ import annotations

import math
from typing import Final

_TERMS: Final = 10_000
_EXACT: Final = 1e-14
_TINY: Final = 1e-300


def f_tail(x: float, k: float, n: float) -> float:
    """P(X > x) for an F variable of `k` and `n` degrees of freedom, both > 0."""
    return 1.0 if x <= 0 else _beta(n / 2, k / 2, n / (n + k * x))


def t_tail(x: float, n: float) -> float:
    """P(|X| > |x|) for Student's t of `n` degrees of freedom, n > 0: both sides."""
    return _beta(n / 2, 0.5, n / (n + x * x))


def f_quantile(tail: float, k: float, n: float) -> float:
    """The value that an F variable of `k` and `n` degrees of freedom exceeds with probability `tail`."""
    low, high = 0.0, 1.0
    while f_tail(high, k, n) > tail and high < 1 / _EXACT:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f_tail(middle, k, n) > tail else (low, middle)
    return high


def _beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularized incomplete beta function, for x from 0 to 1."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log) * _fraction(a, b, x) / a
    return 1 - math.exp(log) * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, _TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            found *= c * d
        if abs(c * d - 1) < _EXACT:
            break
    return found


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
