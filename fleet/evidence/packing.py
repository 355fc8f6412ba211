"""Sketches as few bytes that are added up fast: millions of them are kept, and merged by the hundred thousand.

    pack({-3: 1, 40: 7})      # b"" for none; numbers of buckets (`wire.sketch.Sketch`) to counts
    total = Total()
    total.add(packed)         # of one sketch, or of many one behind the other
    total.buckets()

A head (widths, first bucket, how many), then the counts, little-endian: of every bucket from the first to the last, a
byte each as long as all are below 256; where most of those would be 0, the distances between buckets stand before the
counts instead. Adding sketches of the first kind is adding long integers with a lane of 64 bits for each bucket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Final

from wire.sketch import Sketch

MOST: Final = (1 << 47) - 1
"""Where a count stops rising: a hundred thousand of them fit in a lane."""
_HEAD: Final = struct.Struct("<BhH")
_COUNTS: Final = "BHIQ"
_WIDTHS: Final = (1, 2, 4, 8)
_SPARSE: Final = 4
_BLOCK: Final = 64
"""Buckets; sketches that begin in the same block are one integer."""
Buckets = dict[int, int]


def pack(buckets: Mapping[int, int]) -> bytes:
    """The bytes of a sketch. Buckets without a count are left out."""
    numbers = sorted(number for number, n in buckets.items() if n)
    if not numbers:
        return b""
    most, first = max(buckets.values()), numbers[0]
    width = 0 if most < 1 << 8 else 1 if most < 1 << 16 else 2 if most < 1 << 32 else 3
    n, lanes = len(numbers), numbers[-1] - first + 1
    if lanes * _WIDTHS[width] <= 2 * n * (2 + _WIDTHS[width]):
        counts = [0] * lanes
        for number in numbers:
            counts[number - first] = min(buckets[number], MOST)
        return _HEAD.pack(width, first, lanes) + struct.pack(f"<{lanes}{_COUNTS[width]}", *counts)
    gaps = (b - a for a, b in pairwise(numbers))
    few = (min(buckets[number], MOST) for number in numbers)
    return _HEAD.pack(width | _SPARSE, first, n) + struct.pack(f"<{n - 1}H{n}{_COUNTS[width]}", *gaps, *few)


def unpack(data: bytes) -> Buckets:
    """The inverse of `pack`."""
    if data and not data[0] & _SPARSE:  # a device's own minutes, thousands a second
        width, first, n = _HEAD.unpack_from(data)
        counts = struct.unpack_from(f"<{n}{_COUNTS[width]}", data, _HEAD.size)
        return {number: n for number, n in enumerate(counts, first) if n}
    total = Total()
    total.add(data)
    return total.buckets()


class Total:
    """The sum of many sketches."""

    __slots__ = ("_blocks", "_few")

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._few: Buckets = {}

    def add(self, data: bytes) -> None:
        """Add packed sketches that stand one behind the other."""
        at, blocks = 0, self._blocks
        while at < len(data):
            flags, first, n = _HEAD.unpack_from(data, at)
            at += 5
            if flags & _SPARSE:
                at = self._add_few(data, at, first, n, flags & 3)
                continue
            width = _WIDTHS[flags]
            lanes = bytearray(8 * n)
            for i in range(width):
                lanes[i::8] = data[at + i : at + n * width : width]
            at += n * width
            value = int.from_bytes(lanes, "little") << 64 * (first % _BLOCK)
            blocks[first // _BLOCK] = blocks.get(first // _BLOCK, 0) + value

    def _add_few(self, data: bytes, at: int, first: int, n: int, width: int) -> int:
        words = f"<{n - 1}H{n}{_COUNTS[width]}"
        values = struct.unpack_from(words, data, at)
        numbers = accumulate(values[: n - 1], initial=first)
        for number, count in zip(numbers, values[n - 1 :], strict=True):
            self._few[number] = self._few.get(number, 0) + count
        return at + struct.calcsize(words)

    def buckets(self) -> Buckets:
        """Counts by number of bucket."""
        found = dict(self._few)
        for block, value in self._blocks.items():
            lanes = (value.bit_length() + 63) // 64
            counts = struct.unpack(f"<{lanes}Q", value.to_bytes(8 * lanes, "little"))
            for number, n in enumerate(counts, block * _BLOCK):
                if n:
                    found[number] = found.get(number, 0) + n
        return found


def buckets_of(sketch: Sketch) -> Buckets:
    """A sketch by number of bucket."""
    return {int(key): n for key, n in sketch.buckets.items()}


def sketch_of(buckets: Mapping[int, int]) -> Sketch:
    """The inverse of `buckets_of`."""
    return Sketch(buckets={str(number): n for number, n in buckets.items() if n})
