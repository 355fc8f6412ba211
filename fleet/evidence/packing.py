"""Sketches as few bytes: millions of them are kept, and merged by the hundred thousand.

    pack({-3: 1, 40: 7})      # b"" for none; numbers of buckets (`wire.sketch.Sketch`) to counts
    add_to(counts, packed)    # merge into a dict: the fast way to add up many

One byte of widths, the first bucket, the distances between buckets, the counts; little-endian. A sketch of a few minutes
takes two bytes a bucket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

from wire.sketch import Sketch

FULL: Final = (1 << 62) - 1
"""Where a count stops rising: sums of many must fit in the database's 64 bits."""
_COUNTS: Final = "BHIQ"
_GAPS: Final = "BH"
_WIDTHS: Final = (1, 2, 4, 8)
Buckets = dict[int, int]


def pack(buckets: Mapping[int, int]) -> bytes:
    """The bytes of a sketch. Buckets without a count are left out."""
    numbers = sorted(number for number, n in buckets.items() if n)
    if not numbers:
        return b""
    counts = [min(buckets[number], FULL) for number in numbers]
    gaps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
    most = max(counts)
    width = 0 if most < 1 << 8 else 1 if most < 1 << 16 else 2 if most < 1 << 32 else 3
    wide = int(bool(gaps) and max(gaps) > 255)
    n = len(numbers)
    return struct.pack(f"<Bh{n - 1}{_GAPS[wide]}{n}{_COUNTS[width]}", width | wide << 2, numbers[0], *gaps, *counts)


def unpack(data: bytes) -> Buckets:
    """The inverse of `pack`."""
    counts: Buckets = {}
    add_to(counts, data)
    return counts


def add_to(counts: Buckets, data: bytes) -> None:
    """Add a packed sketch to counts by bucket."""
    if not data:
        return
    width, wide = data[0] & 3, data[0] >> 2
    each, gap = _WIDTHS[width], 1 + wide
    n = (len(data) - 3 + gap) // (gap + each)
    _, *numbers_and_counts = struct.unpack(f"<Bh{n - 1}{_GAPS[wide]}{n}{_COUNTS[width]}", data)
    found = counts.get
    for number, count in zip(accumulate(numbers_and_counts[:n]), numbers_and_counts[n:], strict=True):
        counts[number] = found(number, 0) + count


def buckets_of(sketch: Sketch) -> Buckets:
    """A sketch by number of bucket."""
    return {int(key): n for key, n in sketch.buckets.items()}


def sketch_of(buckets: Mapping[int, int]) -> Sketch:
    """The inverse of `buckets_of`."""
    return Sketch(buckets={str(number): min(n, FULL) for number, n in buckets.items() if n})
