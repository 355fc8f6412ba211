"""What a device does next during a transfer: report, ask again, take another way, raise an alarm. No clock of its own.

pace = Pace(timeout=2.0)
pace.asked(now); pace.heard(size); pace.came(now, new=True)
pace.report_in(now)         # seconds until the fleet should hear what came; inf: nothing came
pace.quiet_in(now)          # seconds until what was asked for counts as lost

by_range(missing, fruitless)       # whether the next chunks are asked for over HTTPS
watch = SlowWatch(rate, after); watch.came(size); watch.look(now, up=True)
"""

from __future__ import annotations

import math
from typing import Final

LONGEST_WAIT: Final = 60.0
"""Seconds between two requests while nothing comes."""
REPORT_BYTES: Final = 256 * 1024
"""Bytes after which the fleet hears how far this device is: well below the smallest window of the fleet."""
REPORT_EVERY: Final = (0.1, 0.5)
"""Shortest and longest pause in seconds between two reports while chunks come; the fleet takes 20 messages a second."""
FEW: Final = 1024 * 1024
"""Bytes that are fetched over HTTPS after one request that brought nothing: nobody else asks for them."""
PATIENCE: Final = 2
"""Requests in a row that brought nothing, after which any number of bytes is fetched over HTTPS."""


def by_range(missing: int, fruitless: int) -> bool:
    """Whether `missing` bytes come by HTTPS after so many requests over MQTT that brought nothing.

    While chunks come, they come for everybody, and cost the fleet least. When they do not, either nobody else asks for
    them, and a few are as cheap in an answer of their own; or the broker drops them.
    """
    return fruitless >= PATIENCE or (fruitless >= 1 and missing <= FEW)


class Pace:
    """One transfer. `timeout` in seconds; it doubles while requests bring nothing."""

    def __init__(self, timeout: float) -> None:
        self._timeout = self._wait = timeout
        self._spoke = self._heard = -math.inf
        self._unreported = 0
        self._new = False
        self.fruitless = 0
        """Requests in a row that brought nothing new."""

    def asked(self, now: float) -> None:
        """Everything that is missing was asked for."""
        self._spoke = self._heard = now
        self._unreported, self._new = 0, False

    def reported(self, now: float) -> None:
        """The fleet was told what came."""
        self._spoke, self._unreported = now, 0

    def heard(self, size: int) -> None:
        """A chunk came over the line: the fleet wants to hear of it."""
        self._unreported += size

    def came(self, now: float, *, new: bool) -> None:
        """A chunk came, whichever way; `new`: it was missing."""
        self._heard = now
        if new:
            self._new, self.fruitless, self._wait = True, 0, self._timeout

    def gave_up(self) -> None:
        """What was asked for last counts as lost, or the line is another one."""
        if not self._new:
            self.fruitless += 1
            self._wait = min(2 * self._wait, LONGEST_WAIT)

    def report_in(self, now: float) -> float:
        """Seconds until a report is due."""
        if not self._unreported:
            return math.inf
        shortest, longest = REPORT_EVERY
        pause = shortest if self._unreported >= REPORT_BYTES else longest
        return max(0.0, self._spoke + pause - now)

    def quiet_in(self, now: float) -> float:
        """Seconds until this is silence."""
        return max(0.0, self._heard + self._wait - now)


class SlowWatch:
    """Whether a transfer is kept slow: less than `rate` bytes per second over `after` seconds, on a line that is up.

    Somebody who can only delay would otherwise keep a device on an old model for ever, and nobody would be told (the
    slow retrieval attack of The Update Framework). A `rate` of 0 never tells.
    """

    def __init__(self, rate: int, after: float) -> None:
        self._rate, self._after = rate, after
        self._since: float | None = None
        self._bytes = 0

    def came(self, size: int) -> None:
        """So many new bytes."""
        self._bytes += size

    def look(self, now: float, *, up: bool) -> float | None:
        """The bytes per second of the time that ended just now, if they were too few; else None."""
        if not up or self._since is None:
            self._since, self._bytes = (now if up else None), 0
            return None
        time, came = now - self._since, self._bytes
        if time < self._after:
            return None
        self._since, self._bytes = now, 0
        return came / time if came < self._rate * time else None
