"""How much a device may say: a gate that drops what is over before anything looks at it.

gate = Gate(rate=20)
gate.admits("shoal/1/d/kitchen-1/telemetry")     # False: drop it
gate.floods()                                    # devices that were far over, at most once a minute each

Memory is bounded by the number of devices, and that by `fleet.limits.HELD`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleet.limits import HELD, Buckets

BURST: Final = 5
"""Seconds' worth of messages that may come at once."""
EVERY: Final = 60.0
"""Seconds between two events about one device's flood."""


@dataclass
class _Dropped:
    topic: str
    since: float
    count: int = 0
    told: float | None = None


@dataclass(frozen=True)
class Flood:
    """A device that sent far too much: how many messages were dropped within the last minute, and the last topic."""

    device: str
    topic: str
    dropped: int


class Gate:
    """A bucket for each topic, so for each device and kind. Called from the broker's thread and from the fleet's."""

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._burst = clock, rate * BURST
        self._buckets = Buckets(rate=rate, burst=self._burst)
        self._dropped: OrderedDict[str, _Dropped] = OrderedDict()
        self._lock = threading.Lock()

    def admits(self, topic: str) -> bool:
        """Whether a message may go on. It looks at nothing but the name of the topic."""
        with self._lock:
            admitted = self._buckets.take(topic, self._clock()) == 0
            if not admitted:
                self._count(topic)
            return admitted

    def floods(self) -> list[Flood]:
        """Devices a whole burst over the limit within a minute. A little over, as when one catches up, is no news."""
        now = self._clock()
        with self._lock:
            due = [
                (device, entry)
                for device, entry in self._dropped.items()
                if entry.count >= self._burst and (entry.told is None or now - entry.told >= EVERY)
            ]
            return [self._tell(device, entry, now) for device, entry in due]

    def _count(self, topic: str) -> None:
        device, now = device_in(topic), self._clock()
        entry = self._dropped.setdefault(device, _Dropped(topic, now))
        if now - entry.since >= EVERY:
            entry.since, entry.count = now, 0
        entry.topic, entry.count = topic, entry.count + 1
        self._dropped.move_to_end(device)
        while len(self._dropped) > HELD:
            self._dropped.popitem(last=False)

    def _tell(self, device: str, entry: _Dropped, now: float) -> Flood:
        flood = Flood(device, entry.topic, entry.count)
        entry.since, entry.count, entry.told = now, 0, now
        return flood


def device_in(topic: str) -> str:
    """The device's part of a topic, empty when it has none. The broker lets a device write under its own id only."""
    parts = topic.split("/", 4)
    return parts[3] if len(parts) == 5 else ""
