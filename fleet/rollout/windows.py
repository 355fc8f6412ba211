"""Maintenance windows: hours of the week, by the clock on the wall of a time zone. Pure.

    windows = (parse_window("mon-fri 01:00-05:00 Europe/Berlin"),)
    is_open(windows, now)
    next_opening(windows, now)        # the first moment from now on at which it is

Days are optional (every day), as is the zone (UTC). A window that ends before it begins ends on the next day; its days
are those on which it begins. Where clocks are put forward, hours that do not exist are not there for a window either;
where they are put back, the hour that comes twice counts twice. That is what somebody who reads the wall clock expects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from fleet.errors import Malformed

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    r"\s*(?:(?P<days>[a-z]{3}(?:[-,][a-z]{3})*)\s+)?"
    r"(?P<start>\d{2}:\d{2})-(?P<end>\d{2}:\d{2})(?:\s+(?P<zone>[A-Za-z0-9_+/-]{1,64}))?\s*"
)
_AHEAD: Final = 16
"""Days to look ahead: a window of one day a week may fall into the hour that a clock skips."""
_DAY: Final = 24 * 60


@dataclass(frozen=True)
class Window:
    """`start` and `end` in minutes of the day, `days` on which it begins (0 is Monday), `zone` by its IANA name."""

    days: frozenset[int]
    start: int
    end: int
    zone: str = "UTC"

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else ",".join(DAYS[d] for d in sorted(self.days)) + " "
        return f"{days}{_clock(self.start)}-{_clock(self.end)} {self.zone}"

    def is_open(self, now: datetime) -> bool:
        """Whether it is open at a moment, which carries a zone of its own."""
        local = now.astimezone(_zone(self.zone))
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        begun_today = day in self.days and minute >= self.start
        return begun_today or ((day - 1) % 7 in self.days and minute < self.end)


def parse_window(text: str) -> Window:
    """A window from text. Raises `Malformed`."""
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise Malformed(
            f"window {text[:80]!r}: expected days, hours and a time zone such as 'mon-fri 01:00-05:00 Europe/Berlin'"
        )
    start, end = _minutes(match["start"], text, last=_DAY - 1), _minutes(match["end"], text, last=_DAY)
    if start == end:
        raise Malformed(f"window {text[:80]!r}: begins when it ends: 00:00-24:00 is a whole day")
    zone = match["zone"] or "UTC"
    try:
        _zone(zone)
    except (KeyError, ValueError, OSError) as e:
        raise Malformed(
            f"window {text[:80]!r}: no time zone {zone!r} is known here: use a name of the IANA list"
        ) from e
    return Window(_days(match["days"], text), start, end, zone)


def is_open(windows: Sequence[Window], now: datetime) -> bool:
    """Whether one of the windows is open; without any it always is."""
    return not windows or any(w.is_open(now) for w in windows)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """The first moment from now on at which one of the windows is open, in UTC; None: not in the next two weeks."""
    if is_open(windows, now):
        return now
    return min((at for w in windows for at in _openings(w, now) if at >= now and w.is_open(at)), default=None)


def _openings(window: Window, now: datetime) -> Iterator[datetime]:
    """When a window may open: at its start, and at a change of the clock that begins within it."""
    zone = _zone(window.zone)
    today = now.astimezone(zone).date()
    for day in (today + timedelta(days=n) for n in range(-1, _AHEAD)):
        for fold in (0, 1):
            begin = datetime.combine(day, time(window.start // 60, window.start % 60, fold=fold), zone)
            yield begin.astimezone(UTC)
        yield from _change(day, zone)


def _change(day: date, zone: ZoneInfo) -> Iterator[datetime]:
    """The moment of a day at which its clock is put forward or back, if it is, to the minute."""
    low = int(datetime.combine(day, time(), zone).timestamp()) // 60
    high = int(datetime.combine(day + timedelta(days=1), time(), zone).timestamp()) // 60
    before = _offset(low, zone)
    if _offset(high, zone) == before:
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset(middle, zone) == before else (low, middle)
    yield datetime.fromtimestamp(high * 60, UTC)


def _offset(minute: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(minute * 60, zone).utcoffset()


def _days(text: str | None, window: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(len(DAYS)))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise Malformed(f"window {window[:80]!r}: {part!r} is no day: use {', '.join(DAYS)}, or two with -")
        begin = DAYS.index(first)
        found.update((begin + n) % 7 for n in range((DAYS.index(last or first) - begin) % 7 + 1))
    return frozenset(found)


def _minutes(text: str, window: str, *, last: int) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes >= 60 or (total := hours * 60 + minutes) > last:
        raise Malformed(f"window {window[:80]!r}: {text} is no time of day: 00:00 to {_clock(last)}")
    return total


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@lru_cache(64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
