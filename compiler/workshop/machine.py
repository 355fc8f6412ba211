"""What this machine does right now: memory and processor time of this session of processes, and of all others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SESSION, _TIMES, _RSS = 3, slice(11, 15), 21
"""Places in what follows the name in `/proc/<pid>/stat` (proc_pid_stat(5)).

The times are utime, stime, cutime and cstime: what a process used that ended is its parent's from then on.
"""
_BUSY = (0, 1, 2, 5, 6, 7)
"""Places of user, nice, system, irq, softirq and steal in the first line of `/proc/stat`."""


def resident() -> int:
    """Bytes of memory that this process and those it started hold, runtimes' worker processes included."""
    return sum(int(stat[_RSS]) for stat in _session()) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Moment:
    """Seconds of processor time since some start: of this session, and of everything; and the load average."""

    own: float
    all: float
    load: float

    @classmethod
    def now(cls) -> Moment:
        """Zeros where the system does not tell."""
        tick = os.sysconf("SC_CLK_TCK")
        own = sum(sum(map(int, stat[_TIMES])) for stat in _session()) / tick
        return cls(own, _all() / tick, os.getloadavg()[0])

    def others(self, later: Moment, seconds: float) -> float:
        """How many processors other work kept busy in between, on average."""
        return max(0.0, (later.all - self.all) - (later.own - self.own)) / seconds


def _all() -> int:
    try:
        first = (_PROC / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
    except OSError:
        return 0
    return sum(int(first[i]) for i in _BUSY)


def _session() -> Iterator[list[str]]:
    """The `stat` of each process of this session."""
    own = os.getsid(0)
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            stat = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended meanwhile
        fields = stat[stat.rindex(")") + 2 :].split()
        if int(fields[_SESSION]) == own:
            yield fields
