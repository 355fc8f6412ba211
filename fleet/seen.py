"""Which telemetry records were stored: small for ever, however many there were, so that none is counted twice.

    seen = Seen.from_text(row.streams)
    seen.holds("inference", first=7, seq=9)      # whether it, or a part of it, was stored before
    seen.add("inference", first=7, seq=9)

For each stream of a boot the newest `EXACT` ranges are kept as they came, and everything up to the oldest of them
counts as stored: the sliding window of IPsec (RFC 4303, section 3.4.3). An agent sends the records of a stream oldest
first, so nothing that is new ever comes from below the window; what comes from there was stored, and is not counted
again.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final, Self

import orjson

EXACT: Final = 24
"""Ranges of a stream that are known one by one."""


@dataclass
class Stream:
    """`upto`: the seq up to which all counts as stored. `ranges`: first and last seq of what came above it, rising."""

    upto: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def overlaps(self, first: int, seq: int) -> bool:
        """Whether a part of a range is held."""
        if first <= self.upto:
            return True
        at = bisect_left(self.ranges, first, key=lambda one: one[1])
        return at < len(self.ranges) and self.ranges[at][0] <= seq

    def names(self, seq: int) -> bool:
        """Whether one of the records above `upto` has this number."""
        at = bisect_left(self.ranges, seq, key=lambda one: one[1])
        return at < len(self.ranges) and self.ranges[at][1] == seq

    def add(self, first: int, seq: int) -> None:
        """Note a range that does not overlap."""
        at = bisect_left(self.ranges, first, key=lambda one: one[1])
        self.ranges.insert(at, (first, seq))
        if len(self.ranges) > EXACT:
            self.upto = self.ranges.pop(0)[1]


@dataclass
class Seen:
    """All streams of one boot of a device."""

    streams: dict[str, Stream] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `to_text`."""
        value = orjson.loads(text)
        return cls(
            {name: Stream(upto, list(zip(flat[::2], flat[1::2], strict=True))) for name, (upto, *flat) in value.items()}
        )

    def to_text(self) -> str:
        """JSON: of each stream `upto`, then first and last of every range."""
        flat = {name: [one.upto, *(n for pair in one.ranges for n in pair)] for name, one in self.streams.items()}
        return orjson.dumps(flat).decode()

    def holds(self, stream: str, first: int, seq: int) -> bool:
        """Whether a record, or a part of what it stands for, was stored; or another stream's of the same number."""
        mine = self.streams.get(stream)
        if mine is not None and mine.overlaps(first, seq):
            return True
        return any(one.names(seq) for name, one in self.streams.items() if name != stream)

    def add(self, stream: str, first: int, seq: int) -> None:
        """Note a record that is not held."""
        self.streams.setdefault(stream, Stream()).add(first, seq)
