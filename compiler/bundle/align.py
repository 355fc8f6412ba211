"""Finds which bytes of an old file lie under which of a new one, although most of them changed a little.

Weights keep their order and their sizes, and move as a whole when what stands before them grows. So: a window of 16
bytes that is the same in both files, and stands once in each, is an anchor and names a shift; anchors in a row with
one shift make a run; a run reaches as far as more bytes agree with its shift than with the next one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from compiler.bundle.chunker import rolling
from wire.delta import MAX_PARTS, Part
from wire.residual import Bytes

_WINDOW: Final = 16
_EVERY: Final = 16
"""One window in so many is looked at, chosen by its content."""
_BLOCK: Final = 64 * 1024
"""Bytes that are hashed at a time: what fits the processor's cache is three times as fast."""
_SAME: Final = 0.25
"""Share of equal bytes from which two files of one size lie as they are: unrelated weights agree in far fewer."""
_SAMPLE: Final = 997
"""A prime: no tensor's rows are a multiple of it."""
_FEWEST: Final = 3
"""Anchors of a run: fewer are chance."""
_MOST_RUNS: Final = MAX_PARTS // 3
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    """From the first anchor's start to the last one's end in the new file, `new + shift` is where it was."""

    first: int
    last: int
    shift: int


def align(old: Bytes, new: Bytes) -> tuple[Part, ...]:
    """The parts of `new` over `old`, neither empty."""
    if len(old) == len(new) and np.mean(old[::_SAMPLE] == new[::_SAMPLE]) >= _SAME:
        return (Part(size=len(new), start=0),)
    runs = _runs(*_anchors(old, new)) or [_Run(0, 0, 0)]
    ends = [_border(old, new, a, b) for a, b in pairwise(runs)] + [len(new)]
    starts = [0, *ends[:-1]]
    pieces = zip(starts, ends, runs, strict=True)
    return tuple(part for a, b, run in pieces for part in _parts(a, b, run.shift, len(old)))


def _anchors(old: Bytes, new: Bytes) -> tuple[Places, Places]:
    """Where the windows that both files have once end, in the order of the new file: old places, new places.

    Two windows of one hash are taken for equal: a mistake names a shift that no neighbour has.
    """
    old_hash, old_at = _windows(old)
    new_hash, new_at = _windows(new)
    at = np.searchsorted(old_hash, new_hash)
    found = np.append(old_hash, 0)[at] == new_hash
    a, b = old_at[at[found]], new_at[found]
    order = np.argsort(b)
    return a[order], b[order]


def _windows(data: Bytes) -> tuple[Places, Places]:
    """The hashes, rising, of the chosen windows that stand in the file once, and where each ends."""
    found = [np.empty(0, np.int64)]
    for block in range(0, len(data), _BLOCK):
        overlap = min(block, _WINDOW - 1)
        rolled = rolling(data[block - overlap : block + _BLOCK], _WINDOW)
        chosen = np.flatnonzero(rolled < 2**32 // _EVERY)
        chosen = chosen[chosen >= _WINDOW - 1]
        found.append((rolled[chosen].astype(np.int64) << 32) | (chosen + block - overlap))
    both: Places = np.sort(np.concatenate(found))
    hashes: Places = both >> 32
    new = np.ones(len(hashes) + 1, np.bool_)
    new[1:-1] = hashes[1:] != hashes[:-1]
    once = new[:-1] & new[1:]
    return hashes[once], both[once] & (2**32 - 1)


def _runs(old_at: Places, new_at: Places) -> list[_Run]:
    """Anchors in a row with one shift; a few strangers among them are chance. The longest, when there are too many."""
    shifts = old_at - new_at
    edges = np.flatnonzero(np.diff(shifts, prepend=shifts[:1] - 1))
    lengths = np.diff(edges, append=len(shifts))
    kept = np.repeat(lengths >= _FEWEST, lengths)
    shifts, ends = shifts[kept], new_at[kept]
    edges = np.flatnonzero(np.diff(shifts, prepend=shifts[:1] - 1))
    lasts = np.append(edges[1:], len(shifts))[: len(edges)]
    runs = [
        _Run(int(ends[a]) - _WINDOW + 1, int(ends[b - 1]) + 1, int(shifts[a]))
        for a, b in zip(edges, lasts, strict=True)
    ]
    longest = sorted(runs, key=lambda run: run.last - run.first, reverse=True)[:_MOST_RUNS]
    return sorted(longest, key=lambda run: run.first)


def _border(old: Bytes, new: Bytes, before: _Run, after: _Run) -> int:
    """Where, between two runs, one shift explains more than the other."""
    first, last = before.last, max(before.last, after.first)
    gain = _agree(old, new, first, last, before.shift) - _agree(old, new, first, last, after.shift)
    return first + int(np.argmax(np.concatenate([[0], np.cumsum(gain)])))


def _agree(old: Bytes, new: Bytes, first: int, last: int, shift: int) -> npt.NDArray[np.int8]:
    """1 for every byte of `new[first:last]` that is the same in the old file under this shift."""
    same = np.zeros(last - first, np.int8)
    a, b = max(first, -shift), min(last, len(old) - shift)
    if a < b:
        same[a - first : b - first] = new[a:b] == old[a + shift : b + shift]
    return same


def _parts(first: int, last: int, shift: int, size: int) -> Iterator[Part]:
    """One stretch of the new file: what reaches out of the old one is new."""
    a = min(max(first, -shift), last)
    b = max(min(last, size - shift), a)
    for start, end, held in ((first, a, False), (a, b, True), (b, last, False)):
        if start < end:
            yield Part(size=end - start, start=start + shift if held else None)
