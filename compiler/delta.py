"""Makes a delta: one blob out of another that a device holds (`wire.delta`), and its chunk list.

digests, sizes      of both
align               which bytes of the base lie under which of the target
width               how the bytes of the residual are sorted: whatever a sample compresses best with
write, prove        the residual of every block, and the target made of it again
"""

from __future__ import annotations

import hashlib
import heapq
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from compiler.bundle.align import align
from compiler.bundle.chunker import chunk_list
from compiler.errors import Malformed, Untrusted
from compiler.progress import Reporter
from wire.chunks import WHOLE
from wire.delta import BLOCK, DeltaHeader, Part, join, split
from wire.residual import Bytes, pack, restore

DELTA, CHUNKS = "delta", "chunks"
"""Files of the output folder; the second only for a delta that does not travel whole."""
_LEVEL: Final = 4
_SAMPLES: Final = 2
_READ: Final = 64 * 1024


def make_delta(base: Path, target: Path, output: Path, report: Reporter) -> None:
    """Write the delta from `base` to `target` into a new folder. Raises `Malformed` for an empty file."""
    report.total = 3
    report.step("aligning the two files")
    old, new = _read(base), _read(target)
    parts = align(old, new)
    header = DeltaHeader(
        base=_digest(old),
        base_size=len(old),
        target=_digest(new),
        target_size=len(new),
        width=_width(old, new, parts),
        parts=parts,
    )
    report.step("subtracting and compressing")
    output.mkdir(parents=True)
    data = join(header) + b"".join(_stream(header, old, new))
    report.step("making the target of it again")
    _prove(data, old)
    (output / DELTA).write_bytes(data)
    if len(data) > WHOLE:
        (output / CHUNKS).write_bytes(chunk_list(data).to_bytes())
    report.finish(f"{len(data)} bytes for {len(new)}, {100 * len(data) / len(new):.1f} %")


def _read(path: Path) -> Bytes:
    data = np.fromfile(path, np.uint8)
    if not len(data):
        raise Malformed(f"delta: {path} is empty: there is nothing to make or to make it of")
    return data


def _digest(data: Bytes) -> str:
    return "sha256:" + hashlib.sha256(data.data).hexdigest()


def _stream(header: DeltaHeader, old: Bytes, new: Bytes) -> Iterator[bytes]:
    deflate = zlib.compressobj(_LEVEL)
    for offset in _blocks(new):
        yield deflate.compress(_packed(old, new, header.parts, offset, header.width))
    yield deflate.flush()


def _width(old: Bytes, new: Bytes, parts: Sequence[Part]) -> int:
    """The width that the blocks that changed most compress best with; the smallest where it makes no difference."""
    changed = {at: np.count_nonzero(new[at : at + BLOCK] != _under(old, new, parts, at)) for at in _blocks(new)}
    sample = heapq.nlargest(_SAMPLES, changed, key=changed.__getitem__)

    def cost(width: int) -> int:
        return sum(len(zlib.compress(_packed(old, new, parts, offset, width), 1)) for offset in sample)

    return min((1, 2, 4), key=cost)


def _blocks(new: Bytes) -> range:
    return range(0, len(new), BLOCK)


def _packed(old: Bytes, new: Bytes, parts: Sequence[Part], offset: int, width: int) -> bytes:
    """The residual of the block that begins at `offset`."""
    return pack(new[offset : offset + BLOCK], _under(old, new, parts, offset), width)


def _under(old: Bytes, new: Bytes, parts: Sequence[Part], offset: int) -> Bytes:
    """The bytes of the base under that block, zeros under what is new."""
    size = min(BLOCK, len(new) - offset)
    pieces, at = [], 0
    for part in parts:
        first, last = max(offset, at), min(offset + size, at + part.size)
        if first < last:
            start = None if part.start is None else part.start + first - at
            pieces.append(np.zeros(last - first, np.uint8) if start is None else old[start : start + last - first])
        at += part.size
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _prove(data: bytes, old: Bytes) -> None:
    """Raises `Untrusted` unless a device makes the target of it: one that does not would be an alarm on every one."""
    header, start = split(data)
    made = hashlib.sha256()
    for block in restore(header, _pieces(data, start), lambda at, size: old[at : at + size].tobytes()):
        made.update(block)
    if f"sha256:{made.hexdigest()}" != header.target:
        raise Untrusted(f"delta from {header.base} to {header.target}: it makes another blob: this is a bug, report it")


def _pieces(data: bytes, start: int) -> Iterator[bytes]:
    return (data[at : at + _READ] for at in range(start, len(data), _READ))
