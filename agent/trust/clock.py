"""What time it is, by what the fleet signed: a device may stand at 1970 or 2100, and must not stay there.

    clock.learn(ack.time, latest=root_expires)   # the answer to a nonce of ours, so it is of this moment
    clock.now()                                   # for expiry: of desired states, commands and releases
    clock.signed()                                # for what is checked before anybody could tell the time

Trusted time is never below the newest time that the fleet signed (`StateFile.newest_time`). What the fleet says binds
only up to the expiry of the root metadata: a stolen fleet key must not put a device beyond every expiry for ever. New
online keys void what the old ones said (as TUF 5.3.11 voids their version counters): `forget`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from agent.errors import Unavailable
from agent.store.state import StateFile

log = logging.getLogger("agent.trust.clock")

MOVED: Final = timedelta(minutes=1)
"""A step of `now()` after which what was judged by it must be looked at again."""
WRITE_EVERY: Final = 60.0
"""Seconds between two writes of the newest time: a flash card pays for each."""
WRITE_AT_ONCE: Final = timedelta(hours=1)
"""A step that is written without waiting."""
_END: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""Far enough from the last date of `datetime` to go on counting from."""


def uptime() -> float:
    """Seconds that only rise, those in which the machine slept counted where the system can."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _wall() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Trusted time. `wall` and `monotonic` are the machine's clocks; both may be replaced by a test."""

    def __init__(
        self, state: StateFile, *, wall: Callable[[], datetime] = _wall, monotonic: Callable[[], float] = uptime
    ) -> None:
        self._state = state
        self._wall = wall
        self._monotonic = monotonic
        self._floor = self._on_disk = state.newest_time()
        self._learnt: tuple[datetime, float] | None = None
        self._written: float | None = None

    @property
    def learnt(self) -> bool:
        """Whether the fleet has told the time since this agent started."""
        return self._learnt is not None

    def uptime(self) -> float:
        """The monotonic clock, in seconds: for durations."""
        return self._monotonic()

    def now(self) -> datetime:
        """The signed time and what passed since it; before the fleet told it, the machine's, never below the floor."""
        return self.signed() if self._learnt else max(self._wall(), self._floor)

    def signed(self) -> datetime:
        """The signed time and what passed since it; before the fleet told it, the newest one on disk (1970: none).

        A wall clock at 2100 does not move it, so a server's certificate does not look expired then.
        """
        if self._learnt is None:
            return self._floor
        when, at = self._learnt
        return max(when + timedelta(seconds=self._monotonic() - at), self._floor)

    def offset(self) -> float | None:
        """Seconds by which the machine's clock is ahead of the signed time; None before the fleet told it."""
        return round((self._wall() - self.signed()).total_seconds(), 3) if self._learnt else None

    def learn(self, when: datetime, *, latest: datetime) -> bool:
        """Take the time from a fresh signed answer, at most `latest`. Whether `now()` moved by more than a minute."""
        before = self.now()
        when = min(when, latest, _END)
        self._learnt, self._floor = (when, self._monotonic()), max(when, self._floor)
        moved = abs(self.now() - before) > MOVED
        self._write()
        return moved

    def _write(self) -> None:
        at, step = self._monotonic(), self._floor - self._on_disk
        soon = self._written is not None and at - self._written < WRITE_EVERY
        if step <= timedelta(0) or (soon and step < WRITE_AT_ONCE):
            return
        self._on_disk, self._written = self._floor, at
        try:
            self._state.note_time(self._floor)
        except Unavailable as e:
            log.error("the time is not kept over a restart: %s", e)  # noqa: TRY400  a full disk, not a bug

    def forget(self) -> None:
        """The keys that signed it are no more: the machine's clock counts until the fleet tells the time again.

        On disk it is forgotten together with the root that rotated them (`StateFile.save_trust`).
        """
        self._floor = self._on_disk = datetime.fromtimestamp(0, UTC)
        self._learnt = self._written = None
