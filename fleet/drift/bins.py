"""Tables of counts as shares of a few bins, so that two of them can be held against each other. Pure.

    bins = Bins.of("labels", base)        # chosen by what is expected, never by what came
    bins.sort(counts)                     # a count for each bin

Labels and languages: the most frequent ones, the rest in one bin. Confidence and lengths: neighbours taken together
until each bin holds about as much, and what is smaller or larger than anything expected.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from fleet.drift.looks import Counts, Kind

NAMED: Final = 20
"""Labels or languages with a bin of their own ..."""
RARE: Final = 0.01
"""... which have at least this share."""
LEVELS: Final = 8
"""Bins of numbers."""
DAMP: Final = 0.005
"""Added to every share where one is divided by another: what was never expected must not count without end."""
REST: Final = "others"
Vector = Sequence[float]


@dataclass(frozen=True)
class Bins:
    """`names` are labels or languages, or the highest bucket of each bin of numbers; one bin more holds the rest."""

    kind: Kind
    names: tuple[str, ...]

    @classmethod
    def of(cls, kind: Kind, base: Counts) -> Self:
        """Bins for what is expected to look like `base`."""
        total = sum(base.values()) or 1.0
        if kind in ("labels", "languages"):
            common = sorted(((-n, name) for name, n in base.items() if n >= RARE * total), key=lambda pair: pair)
            return cls(kind, tuple(name for _, name in common[:NAMED]))
        keys = sorted(base, key=int)
        ends = [str(int(keys[0]) - 1)] if keys else []
        held = 0.0
        for key in keys:
            held += base[key]
            if held >= total / LEVELS or key == keys[-1]:
                ends.append(key)
                held = 0.0
        return cls(kind, tuple(ends))

    @property
    def titles(self) -> tuple[str, ...]:
        """A name for each bin."""
        return (*self.names, REST)

    def sort(self, counts: Counts) -> list[float]:
        """How much is in each bin."""
        found = [0.0] * (len(self.names) + 1)
        if self.kind in ("labels", "languages"):
            places = {name: i for i, name in enumerate(self.names)}
            for name, n in counts.items():
                found[places.get(name, -1)] += n
        else:
            ends = [int(name) for name in self.names]
            for key, n in counts.items():
                found[bisect_left(ends, int(key))] += n
        return found


def shares(counts: Vector) -> list[float]:
    """Counts as shares of their sum; of nothing each is 0."""
    total = sum(counts)
    return [n / total if total else 0.0 for n in counts]


def psi(expected: Vector, seen: Vector) -> float:
    """The population stability index of two sets of shares, each damped by `DAMP`; 0 where they are the same.

    Siddiqi, Credit Risk Scorecards (2006). Where nothing moved it is about chi-square over n (Yurdakul and Naranjo,
    "Statistical properties of the population stability index", Journal of Risk Model Validation, 2020), so what counts
    as much depends on n; the customary 0.1 is only a floor.
    """
    return sum(parts(expected, seen))


def parts(expected: Vector, seen: Vector) -> list[float]:
    """What each bin adds to `psi`."""
    return [(q - e) * math.log((q + DAMP) / (e + DAMP)) for e, q in zip(expected, seen, strict=True)]
