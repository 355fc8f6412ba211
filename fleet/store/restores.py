"""When this fleet was brought back from a backup, and when that was made: what it did in between it does not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlmodel import Session

from fleet.store.tables import MetaRow
from wire.units import instant, show_instant

RESTORES: Final = "restores"


@dataclass(frozen=True)
class Restore:
    """A restore at `at` from a backup that was begun at `made`."""

    made: datetime
    at: datetime


def restores(session: Session) -> tuple[Restore, ...]:
    """Every restore that this fleet went through, the oldest first; none for one that never was lost."""
    row = session.get(MetaRow, RESTORES)
    found = json.loads(row.value) if row else []
    return tuple(Restore(instant(one["made"]), instant(one["at"])) for one in found)


def note_restore(session: Session, restore: Restore) -> None:
    """Add one. Those before it count on: a device may have slept through both."""
    noted = [*restores(session), restore]
    text = json.dumps([{"made": show_instant(one.made), "at": show_instant(one.at)} for one in noted])
    session.merge(MetaRow(key=RESTORES, value=text))
