"""The circuit breaker of one upstream: after some failures in a row it is left alone for a while. Pure.

    if breaker.admits(now): breaker.begin(now); ...; breaker.succeeded() | breaker.failed(now)

After the pause one request is let through as a trial; the next pause is twice as long while trials fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST: Final = 300.0
"""Seconds of the longest pause."""
TRIAL_FOR: Final = 60.0
"""Seconds after which a trial that nobody heard of again gives way to another one."""


@dataclass
class Breaker:
    """`failures` in a row open it for `pause` seconds. `now` is in seconds and never goes back."""

    failures: int
    pause: float
    _in_a_row: int = 0
    _openings: int = 0
    _until: float = 0.0
    _trial_until: float = 0.0

    def admits(self, now: float) -> bool:
        """Whether a request may go to this upstream."""
        return not self._openings or (now >= self._until and now >= self._trial_until)

    def begin(self, now: float) -> None:
        """A request goes out; the first one after a pause is the trial."""
        if self._openings:
            self._trial_until = now + TRIAL_FOR

    def succeeded(self) -> None:
        """It answered: everything is as it was."""
        self._in_a_row = self._openings = 0
        self._until = self._trial_until = 0.0

    def failed(self, now: float) -> None:
        """It did not. A failed trial opens the breaker again at once; what began before it opened says nothing new."""
        if self.state(now) == "open":
            return
        self._in_a_row += 1
        if self._in_a_row >= self.failures or self._openings:
            self._openings += 1
            self._until, self._trial_until = (
                now + min(self.pause * 2.0 ** min(self._openings - 1, 20), max(LONGEST, self.pause)),
                0.0,
            )

    def given_up(self) -> None:
        """Nobody knows what came of it, because whoever asked left: another one may be the trial."""
        self._trial_until = 0.0

    def wait(self, now: float) -> float:
        """Seconds until a request may go through; 0 now."""
        return 0.0 if self.admits(now) else max(self._until, self._trial_until) - now

    def state(self, now: float) -> str:
        """`closed`, `open`, or `half-open` once a trial is due."""
        if not self._openings:
            return "closed"
        return "half-open" if now >= self._until else "open"
