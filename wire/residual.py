"""The residual of a delta: what a new block of bytes has over the old one, packed so that it compresses well.

A block of the target minus its bytes of the base, modulo 256, is cut into `width` planes: every `width`-th byte from
the first, then from the second. Weights that moved a little leave most of it zero, so a plane is one of

    0, plane                   as it is
    1, bitmap, other bytes     which bytes are not zero (lowest bit first), then those bytes

Measured on MiniLM's int8 weights, zlib then makes less of it than bsdiff does, in a fiftieth of the time; zstd and LZMA
would save a twentieth more, and cost a device one more library (docs/decisions/0016).

    packed = pack(new, old, width)
    blocks = restore(header, pieces, read_base)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from wire.delta import DeltaHeader
from wire.errors import Malformed

Bytes = npt.NDArray[np.uint8]
SPARSE: Final = 0.5
"""Largest share of bytes that are not zero for which a bitmap pays."""
_PLAIN, _SPARSE = b"\0", b"\1"
_INFLATED: Final = 64 * 1024
"""Bytes that are unpacked at a time: what a small piece may become is bounded."""


def pack(new: Bytes, old: Bytes, width: int) -> bytes:
    """The residual of one block, both of one length."""
    residual = new - old
    return b"".join(_pack_plane(residual[k::width]) for k in range(min(width, len(residual))))


def restore(header: DeltaHeader, pieces: Iterable[bytes], read_base: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """The target, block by block; `read_base(offset, size)` gives bytes of the base.

    Needs a few times `header.block` of memory, whatever the pieces of the stream hold. Raises `Malformed` when they are
    not what the header says, or the base ends early.
    """
    stream = _Stream(pieces)
    for offset in range(0, header.target_size, header.block):
        size = min(header.block, header.target_size - offset)
        old = b"".join(_base(header, offset, size, read_base))
        if len(old) != size:
            raise Malformed(f"delta: the base {header.base} is shorter than {header.base_size} bytes")
        yield (_unpack(stream, size, header.width) + np.frombuffer(old, np.uint8)).tobytes()
    stream.end()


def _base(header: DeltaHeader, offset: int, size: int, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """The bytes of the base under a block; zeros under what is new."""
    at = 0
    for part in header.parts:
        first, last = max(offset, at), min(offset + size, at + part.size)
        if first < last:
            yield bytes(last - first) if part.start is None else read(part.start + first - at, last - first)
        at += part.size


def _pack_plane(plane: Bytes) -> bytes:
    changed = plane != 0
    if np.count_nonzero(changed) > SPARSE * len(plane):
        return _PLAIN + plane.tobytes()
    bitmap, others = np.packbits(changed, bitorder="little"), plane[changed]
    return b"".join((_SPARSE, bitmap.tobytes(), others.tobytes()))


def _unpack(stream: _Stream, size: int, width: int) -> Bytes:
    block = np.zeros(size, np.uint8)
    for k in range(min(width, size)):
        plane = block[k::width]
        match stream.take(1):
            case b"\0":
                plane[:] = np.frombuffer(stream.take(len(plane)), np.uint8)
            case b"\1":
                bitmap = np.frombuffer(stream.take((len(plane) + 7) // 8), np.uint8)
                changed = np.unpackbits(bitmap, count=len(plane), bitorder="little").astype(np.bool_)
                plane[changed] = np.frombuffer(stream.take(int(np.count_nonzero(changed))), np.uint8)
            case other:
                raise Malformed(f"delta: a plane of kind {other[0]}, known are 0 and 1")
    return block


class _Stream:
    """A zlib stream that is unpacked as far as it is asked for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._inflate = zlib.decompressobj()
        self._held = bytearray()

    def take(self, size: int) -> bytes:
        """The next `size` bytes. Raises `Malformed` when the stream ends before, or is none."""
        while len(self._held) < size:
            if not self._more():
                raise Malformed("delta: its stream ends early")
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def end(self) -> None:
        """Raises `Malformed` unless everything was taken, and the stream ends here."""
        if self._held or self._more():
            raise Malformed("delta: its stream goes on after the last block")
        if not self._inflate.eof or self._inflate.unused_data or next(self._pieces, b""):
            raise Malformed("delta: its stream does not end where it should")

    def _more(self) -> bool:
        """Unpack some more; whether there was any."""
        while not self._inflate.eof:
            piece = self._inflate.unconsumed_tail or next(self._pieces, b"")
            try:
                inflated = self._inflate.decompress(piece, _INFLATED)
            except zlib.error as e:
                raise Malformed(f"delta: its stream is damaged: {e}") from e
            self._held += inflated
            if inflated or not piece:
                return bool(inflated)
        return False
