"""Quantities with a unit, as people write them in settings and profiles, and times.

    seconds("90 s") == 90.0      seconds("5 min") == 300.0
    size("64 MiB") == 67108864   show_size(67108864) == "64.0 MiB"

A number without a unit, or with the wrong kind of unit, is `Malformed` and the message names the units.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from wire.errors import Malformed

_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def seconds(text: str, *, where: str = "duration") -> float:
    """A duration in seconds. Raises `Malformed`."""
    return _quantity(text, _SECONDS, where)


def size(text: str, *, where: str = "size") -> int:
    """A size in bytes. Raises `Malformed`."""
    return int(_quantity(text, _BYTES, where))


def show_size(n: float) -> str:
    """A size for people: `22.9 MiB`."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(n) >= factor:
            return f"{n / factor:.1f} {unit}"
    return f"{int(n)} B"


def show_seconds(s: float) -> str:
    """A duration for people: `850 ms`, `4.2 s`, `3 min`, `5 h`, `2 d`."""
    if s < 1:
        return f"{s * 1000:.0f} ms"
    if s < 60:
        return f"{s:.1f} s"
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if s >= factor:
            return f"{s / factor:.0f} {unit}"
    raise AssertionError(s)


def _quantity(text: str, units: dict[str, float] | dict[str, int], where: str) -> float:
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)\s*", text)
    if not match or match[2] not in units:
        raise Malformed(f"{where}: expected a number with one of the units {', '.join(units)}, got {text!r}")
    return float(match[1]) * units[match[2]]


def instant(text: str, *, where: str = "time") -> datetime:
    """An RFC 3339 time in UTC, such as `2026-11-22T08:00:00.250Z`. Raises `Malformed`."""
    try:
        when = _read(text) if len(text) == _WRITTEN else datetime.fromisoformat(text)
    except ValueError as e:
        raise Malformed(f"{where}: expected an RFC 3339 time, got {text[:40]!r}") from e
    if when.utcoffset() != timedelta(0):
        raise Malformed(f"{where}: expected a time in UTC ending in Z, got {text[:40]!r}")
    return when


_WRITTEN = len("2026-11-22T08:00:00.250Z")
_read = lru_cache(maxsize=4096)(datetime.fromisoformat)
"""The records of a batch name the same moments, and each is asked for them many times."""


def show_instant(when: datetime) -> str:
    """The inverse of `instant`, to the millisecond. `when` carries a time zone."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
