"""Whether a device is there, in four words that mean different things, and how old a figure is. Pure.

    freshness(heard, hearing) == "late"
    age("2026-11-23T08:00:00.000Z", 90.0, now)     # {"at": ..., "age_s": 10800.0, "stale": True}

online: connected, and heard within its interval. late: its connection stands, or the broker says so, but what it should
have said is overdue. offline: its will says that it is away, or its absence does: everybody had time to come back.
unknown: nobody can say, because the fleet itself does not hear, has just begun to, or never heard the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal

from wire.units import instant

Word = Literal["online", "late", "offline", "unknown"]
WORDS: Final[tuple[Word, ...]] = ("online", "late", "offline", "unknown")
INTERVAL: Final = timedelta(seconds=60)
"""Between two messages of a device that did not say how long its windows are: the default of an agent."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of a device's line. `online` is by its last birth or death, `gone` when it was said to be away.

    `last`: when it spoke last; None: never. `interval` is how often it speaks by itself.
    """

    online: bool
    gone: datetime | None
    last: datetime | None
    interval: timedelta = INTERVAL


@dataclass(frozen=True)
class Hearing:
    """How the fleet itself hears: since when its line to the broker stands without a break; None: it does not.

    `patience` is how long devices have to come back after that, `grace` by how much a message may be overdue.
    """

    now: datetime
    since: datetime | None
    patience: timedelta
    grace: timedelta

    def allowed(self, interval: timedelta) -> timedelta:
        """The age from which on what comes once in an interval is stale."""
        return interval + self.grace


def freshness(heard: Heard, hearing: Hearing) -> Word:
    """The word for a device that is enrolled."""
    if hearing.since is None:
        return "unknown"
    waited = hearing.now - hearing.since
    if not heard.online:
        absent = heard.last is not None and waited >= hearing.patience
        return "offline" if heard.gone is not None or absent else "unknown"
    allowed = hearing.allowed(heard.interval)
    overdue = heard.last is None or hearing.now - heard.last > allowed
    if not overdue:
        return "online"
    if heard.last is not None and heard.last >= hearing.since:
        return "late"
    # Not heard since the line stands: only the broker's memory or ours says that it is there. A device that is speaks
    # when its own line comes back, and once in its interval: a longer silence is absence.
    if waited >= max(hearing.patience, allowed):
        return "offline"
    return "late" if waited >= hearing.grace else "unknown"


@lru_cache(1024)
def interval_of(seconds: float) -> timedelta:
    """The interval that a device says; what is 0 or cannot be is `INTERVAL`."""
    return timedelta(seconds=seconds) if 0 < seconds <= timedelta(days=1).total_seconds() else INTERVAL


def age(at: str | None, allowed: float, now: datetime) -> dict[str, Any]:
    """How old a figure of the moment `at` is, in seconds, and whether it is stale; one that never came is."""
    if not at:
        return {"at": None, "age_s": None, "stale": True}
    seconds = max(0.0, (now - instant(at)).total_seconds())
    return {"at": at, "age_s": round(seconds, 1), "stale": seconds > allowed}


def ages(heard: Heard, hearing: Hearing, times: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """The age of each figure of one device, by its name. All are stale while the device is not online."""
    allowed = hearing.allowed(heard.interval).total_seconds()
    here = freshness(heard, hearing) == "online"
    shown = {name: age(at, allowed, hearing.now) for name, at in times.items()}
    return {name: one if here else one | {"stale": True} for name, one in shown.items()}
