"""Cuts a blob into content-defined chunks, so that two versions share the chunks that did not change.

A gear rolling hash over the last 32 bytes (FastCDC, Xia et al., USENIX ATC 2016) is computed for every position at
once; a position whose hash is small is a possible cut. Sizes stay within `SMALLEST` and `WHOLE` of
`wire.chunks`, and come to `AVERAGE` on random data. The last chunk may be shorter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wire.chunks import AVERAGE, SMALLEST, WHOLE, ChunkList, ChunkRef, digest

_WINDOW = 32
_BLOCK = 4 * 1024 * 1024
_THRESHOLD = 2**32 // (AVERAGE - SMALLEST)
# Part of the format in practice: another table cuts elsewhere, and versions share nothing.
_GEAR = np.frombuffer(b"".join(hashlib.sha256(b"shoal gear %d" % i).digest()[:4] for i in range(256)), dtype="<u4")


def chunk_list(data: bytes) -> ChunkList:
    """The chunk list of a blob that is not empty."""
    ends = list(cuts(data))
    starts = [0, *ends[:-1]]
    refs = (ChunkRef(digest=digest(data[a:b]), size=b - a) for a, b in zip(starts, ends, strict=True))
    return ChunkList(blob=digest(data), size=len(data), chunks=tuple(refs))


def cuts(data: bytes) -> Iterator[int]:
    """The end of each chunk, in bytes from the start of the blob; the last is the blob's length."""
    possible = _possible(data)
    start = 0
    while len(data) - start > SMALLEST:
        at = int(np.searchsorted(possible, start + SMALLEST))
        end = min(start + WHOLE, len(data))
        if at < len(possible):
            end = min(end, int(possible[at]))
        yield end
        start = end
    if start < len(data):
        yield len(data)


def _possible(data: bytes) -> npt.NDArray[np.int64]:
    """Every position after a byte whose hash is below the threshold, ascending."""
    found = [np.empty(0, np.int64)]
    for block in range(0, len(data), _BLOCK):
        overlap = min(block, _WINDOW - 1)
        piece = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - block) + overlap, block - overlap)
        hashes = rolling(piece, _WINDOW)
        found.append(np.flatnonzero(hashes[overlap:] < _THRESHOLD) + block + 1)
    return np.concatenate(found)


def rolling(block: npt.NDArray[np.uint8], window: int) -> npt.NDArray[np.uint32]:
    """`h[i]` = sum of `GEAR[b[i - k]] << k` for k below `window`, modulo 2^32: a power of 2, by doubling."""
    hashes = _GEAR[block].astype(np.uint32)
    width = 1
    while width < window:
        older = hashes[:-width] << np.uint32(width)
        hashes[width:] += older
        width *= 2
    return hashes
