"""Who is reached next, and how many may be. Pure.

Eligible devices stand in the order of a hash of rollout and device id, and one is reached only while fewer are than the
wave's share of all that are eligible now. So the wave is a place in the order and no list that was drawn up once: a
device that joins late, comes back or changes its profile falls where it belongs, and none escapes the waves.

    queue = order("r-1", devices)
    room(waves, wave, reached=12, waiting=len(queue))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fleet.rollout.waves import Wave, limit


def position(rollout: str, device: str) -> bytes:
    """A device's place in a rollout: another one in every rollout, so that no device is always the first."""
    return hashlib.sha256(f"{rollout}\n{device}".encode()).digest()


def order(rollout: str, devices: Iterable[str]) -> list[str]:
    """Devices in the order in which a rollout reaches them."""
    return sorted(devices, key=lambda device: position(rollout, device))


def room(waves: Sequence[Wave], wave: int, *, reached: int, waiting: int) -> int:
    """How many more devices the wave may reach. Eligible are those that it has reached and those that wait."""
    return max(0, limit(waves, wave, reached + waiting) - reached)
