"""What the fleet's own evidence says of releases in use.

observed_until(clock)(session, [digest])      # {digest: Observed(devices=12, latency_ms=..., ...)}
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlmodel import Session

from fleet.evidence import pages
from fleet.evidence.packing import sketch_of
from fleet.evidence.windows import DAY, NUMBERS
from wire.sketch import Sketch

BACK: Final = timedelta(days=90)
"""Older answers say little of the devices of today."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the fleet's telemetry says of one release in use, over all devices that ran it."""

    devices: int = 0
    latency_ms: Sketch
    feedback_total: int = 0
    feedback_correct: int = 0


Observe = Callable[[Session, Collection[str]], Mapping[str, Observed]]
"""What is known of releases in use, by the digest of their manifest."""


def observed_until(clock: Callable[[], datetime]) -> Observe:
    """Of the last `BACK`, from windows of evidence; what ran in shadow was not in use."""

    def observe(session: Session, digests: Collection[str]) -> Mapping[str, Observed]:
        now = clock()
        found = pages.in_use(session, digests, pages.Span.of(now - BACK, now, DAY))
        return {
            digest: _observed(window.numbers, window.latency, devices) for digest, (window, devices) in found.items()
        }

    return observe


def _observed(numbers: list[int], latency: Mapping[int, int], devices: int) -> Observed:
    of = dict(zip(NUMBERS, numbers, strict=True))
    return Observed(
        devices=devices,
        latency_ms=sketch_of(latency),
        feedback_total=of["feedback_total"],
        feedback_correct=of["feedback_correct"],
    )
