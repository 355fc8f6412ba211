"""Guessing made slow: after some failures each further attempt waits twice as long. Pure; memory is bounded.

    if (wait := throttle.attempt(key, now)): ...   # refuse, and say how many seconds to wait
    throttle.succeeded(key)                        # or `undo`, for a key that many names share

An attempt counts as a failure until it succeeded, so that many at once gain nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

LONGEST = 900.0
"""Seconds."""
FORGET = 3600.0
MOST = 4096


@dataclass
class _Failures:
    count: int = 0
    until: float = 0.0
    seen: float = 0.0


class Throttle:
    """Failures by key; the one seen longest ago is forgotten first. `now` is in seconds and never goes back."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def attempt(self, key: str, now: float) -> float:
        """Seconds to wait; 0 when the attempt may be made, which counts it."""
        found = self._failures.pop(key, None)
        if found is None or now - found.seen > FORGET:
            found = _Failures()
        self._failures[key] = found
        while len(self._failures) > MOST:
            self._failures.popitem(last=False)
        if now < found.until:
            return found.until - now
        found.count, found.seen = found.count + 1, now
        over = found.count - self._free
        found.until = now + min(2.0 ** min(over, 20), LONGEST) if over >= 0 else 0.0
        return 0.0

    def succeeded(self, key: str) -> None:
        """It was who it said: its failures count no more."""
        self._failures.pop(key, None)

    def undo(self, key: str) -> None:
        """This attempt was no failure; those before it still count."""
        if key in self._failures:
            self._failures[key].count -= 1
            self._failures[key].until = 0.0
