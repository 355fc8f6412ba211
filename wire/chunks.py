"""Chunk lists: how a blob is cut for the wire.

A blob up to `WHOLE` bytes travels as one chunk and needs no list. A larger one has a chunk list, a small
blob of its own named by digest in the manifest. Cuts are content-defined (made by the compiler), so that
two versions of a file share the chunks that did not change. Every chunk is verified by itself.

A set of chunk indexes travels as a bitmap: bit `i % 8` (lowest first) of byte `i // 8`, base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

from wire.document import CONTRACT, Document, check_digest
from wire.errors import Malformed

WHOLE = 256 * 1024
"""Largest blob in bytes that is one chunk; also the largest chunk."""
AVERAGE = 64 * 1024
"""Aim of the cutter in bytes: the cheapest message size of the MQTT client."""
SMALLEST = 16 * 1024
MAX_CHUNKS = 1 << 20


def digest(data: bytes) -> str:
    """`sha256:` and the hexadecimal SHA-256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ChunkRef(Document):
    """One chunk: the digest of its bytes and its size in bytes."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        check_digest(self.digest, "chunk digest")
        if not 0 < self.size <= WHOLE:
            raise Malformed(f"chunk {self.digest}: size {self.size}, expected 1 to {WHOLE} bytes")


@dataclass(frozen=True, kw_only=True)
class ChunkList(Document):
    """The chunks of one blob, in order; their sizes add up to the blob's."""

    LIMIT: ClassVar[int] = 64 * 1024 * 1024

    contract: str = CONTRACT
    blob: str
    size: int
    chunks: tuple[ChunkRef, ...]

    def __post_init__(self) -> None:
        check_digest(self.blob, "chunk list blob")
        if not 0 < len(self.chunks) <= MAX_CHUNKS or sum(c.size for c in self.chunks) != self.size:
            raise Malformed(f"chunk list of {self.blob}: {len(self.chunks)} chunks do not add up to {self.size} bytes")

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each chunk starts in the blob, in bytes."""
        return tuple(accumulate((c.size for c in self.chunks[:-1]), initial=0))


def single(blob: str, size: int) -> ChunkList:
    """The chunk list of a blob that travels whole."""
    return ChunkList(blob=blob, size=size, chunks=(ChunkRef(digest=blob, size=size),))


def to_bitmap(indexes: Iterable[int], count: int) -> str:
    """Base64 bitmap of a set of indexes below `count`."""
    bits = bytearray((count + 7) // 8)
    for i in indexes:
        bits[i // 8] |= 1 << (i % 8)
    return base64.b64encode(bits).decode()


def from_bitmap(text: str, count: int) -> frozenset[int]:
    """The inverse of `to_bitmap`. Raises `Malformed` for another length or an index from `count` on."""
    if not 0 < count <= MAX_CHUNKS:
        raise Malformed(f"bitmap: {count} chunks, expected 1 to {MAX_CHUNKS}")
    try:
        bits = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Malformed(f"bitmap: not base64: {e}") from e
    found = frozenset(i * 8 + b for i, byte in enumerate(bits) for b in range(8) if byte >> b & 1)
    if len(bits) != (count + 7) // 8 or any(i >= count for i in found):
        raise Malformed(f"bitmap: does not fit {count} chunks")
    return found
