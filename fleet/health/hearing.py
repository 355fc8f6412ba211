"""How the fleet hears its devices, by its settings and its line to the broker."""

from __future__ import annotations

from datetime import datetime, timedelta

from fleet.health.status import Hearing
from fleet.settings import FleetSettings


def hearing_of(settings: FleetSettings, up_for: timedelta | None, now: datetime) -> Hearing:
    """What a fleet goes by whose line has stood for `up_for`; None: it does not."""
    return Hearing(
        now=now,
        since=None if up_for is None else now - up_for,
        patience=timedelta(seconds=settings.offline_after),
        grace=timedelta(seconds=settings.late_after),
    )
