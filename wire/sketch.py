"""Mergeable summaries: what telemetry carries instead of samples.

`Sketch` answers quantiles with a relative error of at most 2 % (DDSketch, Masson, Rim and Lee, VLDB 2019,
with unbounded counts): bucket `i` holds the values in `(G**(i-1), G**i]`, `G = 1.04`, for `i` from -`LAST` to `LAST`.
Merging is addition.
`Histogram` counts values from 0 to 1 in twenty equal bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from wire.document import Document
from wire.errors import Malformed

_GAMMA = 1.04
_LOG_GAMMA = math.log(_GAMMA)
_SMALLEST, _LARGEST = 1e-9, 1e15
LAST = 1024
"""Largest bucket number, either way: room for every value that counts, and for no number that cannot be one."""
_KEYS = frozenset(str(i) for i in range(-LAST, LAST + 1))
BINS = 20
COARSE = 5
"""Buckets of a sketch that a coarse one has as one: 22 % wide."""


@dataclass(frozen=True, kw_only=True)
class Sketch(Document):
    """Counts of positive values by logarithmic bucket. The unit is the caller's (latency: ms)."""

    buckets: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.buckets.keys() <= _KEYS and min(self.buckets.values(), default=0) >= 0):
            key, n = next((key, n) for key, n in self.buckets.items() if key not in _KEYS or n < 0)
            raise Malformed(f"sketch: bucket {key[:20]!r}: {n} is not a count of a bucket")

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The sketch of some values; those below 1e-9 count as 1e-9, those above 1e15 as 1e15."""
        counts = Counter(math.ceil(math.log(min(max(v, _SMALLEST), _LARGEST)) / _LOG_GAMMA) for v in values)
        return cls(buckets={str(i): n for i, n in counts.items()})

    @property
    def count(self) -> int:
        """How many values went in."""
        return sum(self.buckets.values())

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values. Associative and commutative."""
        return Sketch(buckets=_add(self.buckets, other.buckets))

    def coarse(self) -> Sketch:
        """The same values in buckets `COARSE` times as wide, each under the number of its last: for shapes, not times.

        Every device rounds alike, so coarse sketches still merge by addition.
        """
        found: Counter[str] = Counter()
        for key, n in self.buckets.items():
            found[str(min(COARSE * math.ceil(int(key) / COARSE), COARSE * (LAST // COARSE)))] += n
        return Sketch(buckets=dict(found))

    def quantile(self, q: float) -> float | None:
        """The value at quantile `q` from 0 to 1, within 2 %; None when the sketch is empty."""
        rank, seen = q * (self.count - 1), 0
        for i in sorted(map(int, self.buckets)):
            seen += self.buckets[str(i)]
            if seen > rank:
                return float(2 * _GAMMA**i / (_GAMMA + 1))
        return None

    @property
    def log_sum(self) -> float:
        """The sum of the natural logarithms of all values, each taken as the top of its bucket."""
        return _LOG_GAMMA * sum(int(i) * n for i, n in self.buckets.items())

    def above(self, value: float) -> int:
        """How many values are in buckets above the one of `value`."""
        limit = math.ceil(math.log(min(max(value, _SMALLEST), _LARGEST)) / _LOG_GAMMA)
        return sum(n for i, n in self.buckets.items() if int(i) > limit)


@dataclass(frozen=True, kw_only=True)
class Histogram(Document):
    """Counts of values from 0 to 1 in `BINS` equal bins; the last one includes 1."""

    bins: tuple[int, ...] = (0,) * BINS

    def __post_init__(self) -> None:
        if len(self.bins) != BINS or min(self.bins) < 0:
            raise Malformed(f"histogram: expected {BINS} counts")

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The histogram of some values; those outside 0 to 1 count in the nearest bin."""
        counts = Counter(min(BINS - 1, max(0, int(v * BINS))) for v in values)
        return cls(bins=tuple(counts[i] for i in range(BINS)))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values."""
        return Histogram(bins=tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)))


def _add(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(a) + Counter(b))
