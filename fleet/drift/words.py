"""What moved, in words and numbers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fleet.drift.bins import REST, Bins, parts
from fleet.drift.looks import Counts, Kind
from wire.sketch import BINS, Sketch

_TOLD: Final = 2
"""Bins that are named."""
_NOUN: Final = {"labels": "label", "languages": "language"}
_MOSTLY: Final = 0.5
_PLACES: Final = ((0.5, "median"), (0.9, "9th decile"), (0.1, "1st decile"))
"""Quantiles, the first that moved is told."""


def moved(kind: Kind, bins: Bins, expected: Sequence[float], seen: Sequence[float], base: Counts, today: Counts) -> str:
    """``label `timer` from 12 % to 31 %`` or `confidence median 0.93 -> 0.71`."""
    if kind == "confidence":
        return f"confidence {_quantiles(base, today, _sure_at, '.2f')}"
    if kind == "lengths":
        return f"input length {_quantiles(base, today, _length_at, '.0f')}"
    added = parts(expected, seen)
    order = sorted(range(len(added)), key=lambda i: -added[i])[:_TOLD]
    return ", ".join(_share(kind, bins, i, expected[i], seen[i], base, today) for i in order)


def where(stratum: str, profiles: Sequence[str], devices: int) -> str:
    """`on raspberry-pi-4, 41 devices`."""
    dimension, _, name = stratum.partition(":")
    place = " and ".join(profiles) if not name else name if dimension == "profile" else f"{dimension} {name}"
    return f"on {place}, {devices} device{'s' if devices != 1 else ''}"


def _share(kind: Kind, bins: Bins, i: int, expected: float, seen: float, base: Counts, today: Counts) -> str:
    """One bin; of the rest what most of it is, if there is such."""
    noun, title = _NOUN[kind], bins.titles[i]
    if title != REST:
        return f"{noun} `{title}` from {_percent(expected)} to {_percent(seen)}"
    rest = {name: n for name, n in today.items() if name not in bins.names}
    most = max(rest, key=lambda name: rest[name], default="")
    if most and rest[most] >= _MOSTLY * sum(rest.values()):
        then, now = (t.get(most, 0) / sum(t.values()) for t in (base, today))
        return f"{noun} `{most}` from {_percent(then)} to {_percent(now)}"
    return f"other {noun}s from {_percent(expected)} to {_percent(seen)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.095 else f"{100 * share:.1f} %"


def _quantiles(base: Counts, today: Counts, at: Callable[[Counts, float], float], form: str) -> str:
    told = [(name, f"{at(base, q):{form}}", f"{at(today, q):{form}}") for q, name in _PLACES]
    name, then, now = next((t for t in told if t[1] != t[2]), told[0])
    return f"{name} {then} -> {now}"


def _sure_at(counts: Counts, q: float) -> float:
    """A quantile of the values in a histogram, evenly spread within its bins."""
    rank, seen = sum(counts.values()) * q, 0.0
    for key in sorted(counts, key=int):
        if counts[key] and seen + counts[key] >= rank:
            return (int(key) + (rank - seen) / counts[key]) / BINS
        seen += counts[key]
    return 0.0


def _length_at(counts: Counts, q: float) -> float:
    return Sketch(buckets={key: max(1, round(n)) for key, n in counts.items() if n > 0}).quantile(q) or 0.0
