"""Intervals of shares. Pure.

low, high = wilson(8 / 10, 10)
"""

from __future__ import annotations

import math
from typing import Final

_Z: Final = 1.959963984540054
"""Of the normal distribution, for 95 %."""


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of `n` answers (Wilson, JASA 22, 1927, 209 to 212). Of nothing it is everything.

    It holds the share. `n` may be a number of independent answers that would vary as much. A share beyond 0 or 1 is a
    lie of whoever counted, and is taken for the end.
    """
    if n <= 0:
        return 0.0, 1.0
    p, scale = min(1.0, max(0.0, share)), 1 + _Z**2 / n
    middle = (p + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
    # At an end of the scale, rounding would put the share beside its interval.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))
