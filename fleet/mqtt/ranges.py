"""Chunks for one device alone: the encrypted chunks of a blob laid end to end, read in pieces.

    wanted = ranges.find(digest, "bytes=0-70000")
    ranges.enter(device)                              # raises `TooMany`; `leave(device)` in the end
    for piece in ranges.pieces(wanted): ...

The bytes are those that MQTT carries, so whoever mixes both ways has every chunk once.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fleet.errors import Malformed, TooMany
from fleet.mqtt.transfer import EncryptedChunks
from wire.secrecy import TAG

LARGEST: Final = 8 * 1024 * 1024
"""Bytes of one answer."""
AT_ONCE: Final = 16
"""Answers under way at one time; each holds one chunk in memory."""
OF_ONE: Final = 2
"""Of them for one device: one that it reads, and one whose end was not noticed yet."""
RETRY_AFTER: Final = 5.0


@dataclass(frozen=True)
class ByteRange:
    """Bytes `first` to `last` of the `total` that a blob's encrypted chunks have."""

    digest: str
    first: int
    last: int
    total: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.last + 1 - self.first


class Ranges:
    """Used from any thread. `sent` counts bytes of answers since the start."""

    def __init__(self, chunks: EncryptedChunks) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self.sent = 0

    def enter(self, device: str) -> None:
        """Take one of the places. Raises `TooMany`. Whoever got in calls `leave`."""
        with self._lock:
            if self._under_way[device] >= OF_ONE:
                raise TooMany(f"{device} fetches {OF_ONE} ranges of chunks already", retry_after=RETRY_AFTER)
            if self._under_way.total() >= AT_ONCE:
                raise TooMany(f"{AT_ONCE} ranges of chunks are fetched now: ask by MQTT", retry_after=RETRY_AFTER)
            self._under_way[device] += 1

    def leave(self, device: str) -> None:
        """Give the place back."""
        with self._lock:
            self._under_way[device] -= 1
            if not self._under_way[device]:
                del self._under_way[device]

    def find(self, digest: str, header: str) -> ByteRange:
        """What a Range header names: one range of at most `LARGEST` bytes, or it raises `Malformed`.

        Raises `Untrusted` for a blob that no release lists.
        """
        total = sum(size + TAG for size in self._chunks.sizes(digest))
        match = re.fullmatch(r"bytes=(\d{1,15})-(\d{1,15})", header, re.ASCII)
        if match is None:
            raise Malformed(f"chunks of {digest}: expected a header such as Range: bytes=0-65551, got {header[:80]!r}")
        first, last = int(match[1]), int(match[2])
        if not first <= last < total:
            raise Malformed(f"chunks of {digest}: the range {first}-{last} is not within its {total} bytes")
        if last - first >= LARGEST:
            raise Malformed(f"chunks of {digest}: {last - first + 1} bytes in one range, at most {LARGEST} are sent")
        return ByteRange(digest, first, last, total)

    def pieces(self, wanted: ByteRange) -> Iterator[bytes]:
        """Its bytes, chunk by chunk. Reads the disk. Raises what `EncryptedChunks.read` raises."""
        start = 0
        for index, plain in enumerate(self._chunks.sizes(wanted.digest)):
            size = plain + TAG
            if start <= wanted.last and start + size > wanted.first:
                data = self._chunks.read(wanted.digest, index)
                piece = data[max(0, wanted.first - start) : wanted.last + 1 - start]
                with self._lock:
                    self.sent += len(piece)
                yield piece
            start += size
