"""What moved, in words and numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fleet.drift.bins import REST, Bins, parts
from fleet.drift.looks import Counts, Kind
from wire.sketch import BINS, Sketch

_TOLD: Final = 2
"""Bins that are named."""
_NOUN: Final = {"labels": "label", "languages": "language"}


def moved(kind: Kind, bins: Bins, expected: Sequence[float], seen: Sequence[float], base: Counts, today: Counts) -> str:
    """``label `timer` from 12 % to 31 %`` or `confidence median 0.93 -> 0.71`."""
    if kind == "confidence":
        return f"confidence median {_median_sure(base):.2f} -> {_median_sure(today):.2f}"
    if kind == "lengths":
        return f"input length median {_median_length(base):.0f} -> {_median_length(today):.0f}"
    added = parts(expected, seen)
    order = sorted(range(len(added)), key=lambda i: -added[i])[:_TOLD]
    return ", ".join(
        f"{_name(kind, bins.titles[i])} from {_percent(expected[i])} to {_percent(seen[i])}" for i in order
    )


def where(stratum: str, profiles: Sequence[str], devices: int) -> str:
    """`on raspberry-pi-4, 41 devices`."""
    dimension, _, name = stratum.partition(":")
    place = " and ".join(profiles) if not name else name if dimension == "profile" else f"{dimension} {name}"
    return f"on {place}, {devices} device{'s' if devices != 1 else ''}"


def _name(kind: Kind, title: str) -> str:
    return f"{'other' if title == REST else ''} {_NOUN[kind]}{'s' if title == REST else f' `{title}`'}".strip()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.095 else f"{100 * share:.1f} %"


def _median_sure(counts: Counts) -> float:
    """The middle of the values in a histogram, evenly spread within its bins."""
    half, seen = sum(counts.values()) / 2, 0.0
    for key in sorted(counts, key=int):
        if counts[key] and seen + counts[key] >= half:
            return (int(key) + (half - seen) / counts[key]) / BINS
        seen += counts[key]
    return 0.0


def _median_length(counts: Counts) -> float:
    return Sketch(buckets={key: max(1, round(n)) for key, n in counts.items() if n > 0}).quantile(0.5) or 0.0
