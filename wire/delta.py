"""A delta: what makes one blob of another that a device holds already. Its parts, and the document at its head.

    4 bytes    length of the header, big-endian
    header     a `DeltaHeader` as JSON
    the rest   one zlib stream: the residual of every block, one after the other (`wire.residual`)

The target is cut into blocks of `BLOCK` bytes. Each of its bytes was a byte of the base, named by `parts`, plus one of
the residual, modulo 256; new bytes stand in the residual as they are. A delta is trusted for nothing: whoever applies
it checks each chunk of the result against the digest that a release signed.

    header, start = split(data)
    data = join(header) + stream
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from wire.document import CONTRACT, Document, check_counts, check_digest
from wire.errors import Malformed

BLOCK: Final = 1024 * 1024
"""Bytes of the target that are made at a time. Smaller blocks would cost a device a look at every part for each."""
MAX_PARTS: Final = 512
LENGTH: Final = 4
"""Bytes in front of the header."""


@dataclass(frozen=True, kw_only=True)
class Part(Document):
    """The next `size` bytes of the target lie over those of the base from `start` on; None: over nothing."""

    size: int
    start: int | None = None

    def __post_init__(self) -> None:
        if self.size <= 0 or (self.start is not None and self.start < 0):
            raise Malformed(f"delta part: {self.size} bytes from {self.start}: expected some, from 0 on")


@dataclass(frozen=True, kw_only=True)
class DeltaHeader(Document):
    """Base and target by digest with their sizes in bytes, and how the residual is laid out.

    `width`: in a block's residual every `width`-th byte stands together, because the bytes of a wide number change
    together: 1 for int8 weights, 2 for fp16, 4 for fp32.
    """

    LIMIT: ClassVar[int] = 64 * 1024

    contract: str = CONTRACT
    method: Literal["residual-zlib"] = "residual-zlib"
    base: str
    base_size: int
    target: str
    target_size: int
    width: int = 1
    block: int = BLOCK
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        check_digest(self.base, "delta base")
        check_digest(self.target, "delta target")
        check_counts(self, "base_size", "target_size")
        if self.width not in (1, 2, 4) or self.block != BLOCK:
            raise Malformed(f"delta: width {self.width}, block {self.block}: expected 1, 2 or 4, and {BLOCK}")
        if not 0 < len(self.parts) <= MAX_PARTS or sum(p.size for p in self.parts) != self.target_size:
            raise Malformed(f"delta: {len(self.parts)} parts do not add up to {self.target_size} bytes")
        if any(p.start is not None and p.start + p.size > self.base_size for p in self.parts):
            raise Malformed(f"delta: a part ends beyond the base of {self.base_size} bytes")


def join(header: DeltaHeader) -> bytes:
    """The beginning of a delta: the stream follows. Raises `Malformed` for a header that no reader takes."""
    data = header.to_bytes()
    if len(data) > DeltaHeader.LIMIT:
        raise Malformed(f"delta: a header of {len(data)} bytes, the limit is {DeltaHeader.LIMIT}")
    return len(data).to_bytes(LENGTH, "big") + data


def split(data: bytes) -> tuple[DeltaHeader, int]:
    """The header of a delta, and where its stream starts; `data` may be more than it, and end early.

    Raises `Malformed`, and `Incompatible` for another contract major.
    """
    size = int.from_bytes(data[:LENGTH], "big")
    if size > DeltaHeader.LIMIT or len(data) < LENGTH + size:
        raise Malformed(f"delta: a header of {size} bytes in {len(data)}, the limit is {DeltaHeader.LIMIT}")
    return DeltaHeader.from_bytes(data[LENGTH : LENGTH + size]), LENGTH + size
