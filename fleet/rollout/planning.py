"""What a rollout would do if it were started now: who gets it in which wave, and when at the earliest. Pure.

    plan = make_plan("r-1", terms, candidates, sizes, now)
    plan.waves[0].devices          # in the order in which they would be reached

The order is that of the rollout itself, because a rollout that is started from a plan keeps the plan's id. Times are
the earliest that windows, soak and rate allow: how long installs take, and whether the gates let it pass, nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fleet.rollout.exposure import position
from fleet.rollout.terms import Terms
from fleet.rollout.waves import limit
from fleet.rollout.windows import next_opening

_HOUR: Final = timedelta(hours=1)
_STEPS: Final = 2000
"""Hours with a rate limit that are looked ahead."""


@dataclass(frozen=True)
class Candidate:
    """A device that may be reached: what it should run now of this model (""), and what would keep it from it now."""

    device: str
    profile: str
    runs: str = ""
    hindered: str = ""


@dataclass(frozen=True)
class PlannedWave:
    """`begins` at the earliest; None: not within the time that was looked ahead. `size` in bytes, in full."""

    share: str
    devices: tuple[Candidate, ...]
    begins: datetime | None
    size: int


@dataclass(frozen=True)
class Plan:
    """`ends`: when the last wave may be through at the earliest."""

    waves: tuple[PlannedWave, ...]
    ends: datetime | None

    def profiles(self) -> Counter[str]:
        """Devices by profile."""
        return Counter(c.profile for wave in self.waves for c in wave.devices)


def make_plan(
    rollout: str, terms: Terms, candidates: Sequence[Candidate], sizes: Mapping[str, int], now: datetime
) -> Plan:
    """The plan of a rollout of this id. `sizes`: bytes of the release of each profile."""
    ordered = sorted(candidates, key=lambda c: position(rollout, c.device))
    begins: datetime | None = next_opening(terms.windows, now)
    waves, start = [], 0
    for number, wave in enumerate(terms.waves):
        end = max(start, limit(terms.waves, number, len(ordered)))
        devices = tuple(ordered[start:end])
        size = sum(sizes.get(profile, 0) * n for profile, n in Counter(c.profile for c in devices).items())
        waves.append(PlannedWave(str(wave), devices, begins, size))
        begins = _after(terms, begins, len(devices))
        start = end
    return Plan(tuple(waves), begins)


def _after(terms: Terms, begins: datetime | None, devices: int) -> datetime | None:
    """When the wave after one that begins then may begin, or the rollout end."""
    reached = _all_reached(terms, begins, devices)
    if reached is None or (terms.deadline is not None and reached > terms.deadline):
        return None
    return next_opening(terms.windows, reached + terms.soak)


def _all_reached(terms: Terms, begins: datetime | None, devices: int) -> datetime | None:
    """When the last device of a wave is reached: so many are in each hour."""
    if begins is None or terms.per_hour is None:
        return begins
    hours = max(0, -(-devices // terms.per_hour) - 1)
    if not terms.windows:
        return begins + hours * _HOUR if hours < 24 * 365 * 100 else None
    at: datetime | None = begins
    for _ in range(min(hours, _STEPS)):
        at = next_opening(terms.windows, at + _HOUR) if at is not None else None
    return at if hours <= _STEPS else None
