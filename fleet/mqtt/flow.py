"""One blob on its way: what is wanted, in which order it goes out, and how far ahead of its readers. No clock, no I/O.

    flow = Flow(sizes, gather=0.05)
    flow.hear("kitchen-1", missing, seen=-1, now=t)     # a wish, which is a report of progress too
    index = flow.take(now=t)                            # publish this chunk; None: nothing now
    flow.wait(now=t)                                    # seconds until time alone changes that

The order is a carousel: the cursor goes round over the chunks that somebody lacks. A repair therefore waits until the
cursor comes by again, and by then it repairs for everybody, late joiners included: what it costs does not grow with the
fleet. Messages reach a device in the order of their publication, so the last chunk that it saw says of every other
whether it was lost or is on its way: nothing is sent twice that is only slow.

The window is how many bytes may be out and not yet reported as seen by a reader. It opens while they come and it holds
the next ones up, and closes when many are lost or when they wait in line. The quickest three quarters of the readers
set the pace: a few that are slow, or dead, hold up nobody, and get what they lost in the next round.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

FIRST_WINDOW: Final = 1024 * 1024
SMALLEST_WINDOW: Final = 512 * 1024
LARGEST_WINDOW: Final = 8 * 1024 * 1024
"""Half of what the broker keeps for one reader: what is out always fits there."""
PATIENCE: Final = 5.0
"""Seconds without a word after which a reader is not waited for; when nobody is left, nothing is sent."""
GOVERN: Final = 0.75
"""Share of the readers that set the pace."""
LOSS: Final = 0.25
"""Share of lost chunks above which the window closes: below it, a smaller window would lose as much."""
QUEUED: Final = 0.15
"""Seconds over twice the shortest round trip that a chunk may take before the window closes."""
_GATHER_AT_MOST: Final = 10
_GATHER_LONGEST: Final = 60.0
_GAP: Final = 20
_LONGEST_GAP: Final = 1.0
"""Seconds that the next newcomer is waited for: thousands come as fast as they are looked up, and not evenly."""
_FAN_OUT: Final = 100 * 1024 * 1024
"""Bytes per second that a broker hands out to all readers together: what a round costs, newcomers may be waited for."""


@dataclass
class _Reader:
    at: int
    """Publications with a lower number are behind it."""
    heard: float


@dataclass
class _Log:
    """Publications by number: which chunk, the bytes up to its end, and when."""

    first: int = 0
    before: int = 0
    """Bytes of the forgotten ones."""
    index: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    when: list[float] = field(default_factory=list)

    @property
    def next(self) -> int:
        return self.first + len(self.index)

    def bytes_at(self, number: int) -> int:
        """Bytes published before this publication."""
        at = number - self.first
        return self.end[at - 1] if at > 0 else self.before

    def forget(self, keep: int) -> None:
        gone = len(self.index) - keep
        self.before = self.end[gone - 1]
        for column in (self.index, self.end, self.when):
            del column[:gone]
        self.first += gone


class Flow:
    """One blob of chunks of these sizes in bytes. `gather` is the time that wishes are waited for, in seconds."""

    def __init__(self, sizes: Sequence[int], *, gather: float) -> None:
        self.sizes, self._gather = sizes, gather
        self._wanted: set[int] = set()
        self._cursor = 0
        self._log = _Log()
        self._newest: dict[int, int] = {}
        self._readers: dict[str, _Reader] = {}
        self._first = self._opens = 0.0
        self._shortest = math.inf
        self._closes_again = 0.0
        self._held_up = -math.inf
        self.window = FIRST_WINDOW
        self.used = 0.0

    def __bool__(self) -> bool:
        return bool(self._wanted)

    # --- what readers say ---------------------------------------------------------------------------------------

    def hear(self, device: str, missing: Collection[int], seen: int, now: float, *, asked: float | None = None) -> None:
        """A device lacks these chunks, and `seen` came last (-1: nothing came since it listens).

        `asked`: when it said so, if that was before `now`: what was published since then is on its way to it.
        """
        self.used = now
        if not missing:
            self._readers.pop(device, None)
            return
        known, at = self._readers.get(device), self._position(device, seen, now if asked is None else asked)
        if known is not None and seen >= 0 and at > known.at:
            self._adapt(known.at, at, missing, now)
        self._readers[device] = _Reader(at, now)
        self._gather_more(now, newcomer=known is None)
        self._wanted.update(i for i in missing if self._newest.get(i, -1) < at)

    def _position(self, device: str, seen: int, asked: float) -> int:
        """The number of the first publication that may still be on its way to this device."""
        if seen < 0:  # it listened before it asked
            return self._log.first + bisect_right(self._log.when, asked)
        known = self._readers.get(device)
        if known is None:
            return self._newest.get(seen, self._log.next - 1) + 1
        start = max(known.at, self._log.first)
        try:
            # The first one after its last place: it may not have seen a later one of the same chunk yet.
            return self._log.first + self._log.index.index(seen, start - self._log.first) + 1
        except ValueError:
            return known.at

    def _adapt(self, before: int, at: int, missing: Collection[int], now: float) -> None:
        log, before = self._log, max(before, self._log.first)
        passed = log.index[before - log.first : at - log.first]
        lost = sum(i in missing for i in passed)
        sent = log.when[at - log.first - 1]
        trip = now - sent
        self._shortest = min(self._shortest, trip)
        if lost > LOSS * len(passed) or trip > 2 * self._shortest + QUEUED:
            if now >= self._closes_again:  # once a round trip: every reader tells of the same one
                self.window = max(SMALLEST_WINDOW, self.window * 3 // 4)
                self._closes_again = now + trip
        elif self._held_up >= sent:  # one that holds nobody up need not grow: it is what a killed reader costs
            came = log.bytes_at(at) - log.bytes_at(before)
            self.window = min(LARGEST_WINDOW, self.window + came // len(self._readers))

    def _gather_more(self, now: float, *, newcomer: bool) -> None:
        """The first wish waits for others; newcomers prolong that, by what serving those there are costs."""
        if not self._wanted:
            self._first, self._opens = now, now + self._gather
        elif newcomer and now < self._opens:
            handing_out = sum(self.sizes[i] for i in self._wanted) * len(self._readers) / _FAN_OUT
            at_last = self._first + max(_GATHER_AT_MOST * self._gather, min(handing_out, _GATHER_LONGEST))
            gap = max(self._gather, min(handing_out / _GAP, _LONGEST_GAP))
            self._opens = min(now + gap, at_last)

    # --- what is sent -------------------------------------------------------------------------------------------

    def take(self, now: float) -> int | None:
        """The next chunk to publish, which counts as published now; None when nothing may go now."""
        if not self._wanted or now < self._opens or not self._may_go(now):
            return None
        index = self._next()
        self._wanted.discard(index)
        self._cursor = index + 1
        self._note(index, now)
        return index

    def wait(self, now: float) -> float:
        """Seconds after which `take` may say something else without anybody being heard."""
        if not self._wanted:
            return math.inf
        if now < self._opens:
            return self._opens - now
        oldest = max(self._opens, min((r.heard for r in self._readers.values()), default=now - PATIENCE))
        return max(0.01, min(oldest + PATIENCE - now, 1.0))

    def _may_go(self, now: float) -> bool:
        # While wishes were gathered nobody had anything to say.
        for silent in [d for d, r in self._readers.items() if now - max(r.heard, self._opens) > PATIENCE]:
            del self._readers[silent]
        if not self._readers:
            self._wanted.clear()  # who is still there asks again
            return False
        places = sorted((r.at for r in self._readers.values()), reverse=True)
        slowest = places[math.ceil(GOVERN * len(places)) - 1]
        if self._log.bytes_at(self._log.next) - self._log.bytes_at(slowest) < self.window:
            return True
        self._held_up = now
        return False

    def _next(self) -> int:
        for index in range(self._cursor, len(self.sizes)):
            if index in self._wanted:
                return index
        return min(self._wanted)

    def _note(self, index: int, now: float) -> None:
        log = self._log
        self._newest[index] = log.next
        log.end.append(log.bytes_at(log.next) + self.sizes[index])
        log.index.append(index)
        log.when.append(now)
        self.used = now
        rounds = 4 * len(self.sizes)
        if len(log.index) > rounds + 1024:
            log.forget(rounds)
