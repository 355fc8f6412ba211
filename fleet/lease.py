"""A lease: of all processes of a fleet one acts, and one that lost its turn cannot.

    lease = Lease("rollouts", holder_of(data), timedelta(seconds=30), clock)
    with database.transaction() as session:
        if lease.held(session):        # asked first in every transaction that acts
            ...

Whoever takes it raises its term, in the database. A process that was stopped, and goes on when another has taken over,
finds a term that is not its own, in the very transaction in which it would have acted: PostgreSQL keeps the row locked
until that one ends, and SQLite refuses to write on what somebody else has changed since it was read. So clocks only
decide how soon another one takes over, never whether two act. (An advisory lock would stay with a stopped process.)

`holder` names the data folder and the boot of its machine: only one process has that folder at a time
(`fleet.store.folder`), so a fleet that starts again does not wait for its own lease to run out. Nothing that is copied
is in it: a stand-by starts from a copy of the folder, on a machine that may have the same name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlmodel import Session, select

from fleet.store.rollout_tables import LeaseRow
from wire.units import instant, show_instant

Leads = Callable[[Session], bool]
"""Whether this process may act in this transaction."""
WRONG: Final = 10
"""How many lifetimes clocks of two processes may be apart."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
"""A random id that Linux makes at each boot."""


def alone(_session: Session) -> bool:
    """For a fleet whose database no other process can have."""
    return True


def holder_of(data: Path) -> str:
    """The name of the process that has a data folder; the same for the next one until the machine starts again.

    Where the system has no id of its boot it is a new one each time: then a new process waits for the lease to run out.
    """
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        boot = secrets.token_hex(16)
    place = data.stat()
    return f"{boot}:{place.st_dev}:{place.st_ino}"


@dataclass
class Lease:
    """The turn of one process. `term` is the one that it took; None before it did."""

    name: str
    holder: str
    lifetime: timedelta
    clock: Callable[[], datetime]
    term: int | None = None

    def held(self, session: Session) -> bool:
        """Whether this process may act in this transaction. It takes the lease where nobody has it."""
        row = session.exec(
            select(LeaseRow).where(LeaseRow.name == self.name).with_for_update(),
            execution_options={"populate_existing": True},
        ).first()
        if row is None:
            row = LeaseRow(name=self.name)
        now = self.clock()
        mine = row.holder == self.holder and row.term == self.term
        if not mine and not self._may_take(row, now):
            self.term = None
            return False
        if not mine:
            row.holder, row.term = self.holder, row.term + 1
            self.term = row.term
        elif instant(row.expires) - now > self.lifetime / 2:
            return True
        row.expires = show_instant(now + self.lifetime)
        session.add(row)
        session.flush()
        return True

    def _may_take(self, row: LeaseRow, now: datetime) -> bool:
        if row.holder in ("", self.holder) or not row.expires:
            return True
        # Good for far longer than leases are: a clock that was wrong took it, on a machine that may be gone.
        left = instant(row.expires) - now
        return left < timedelta() or left > WRONG * self.lifetime
