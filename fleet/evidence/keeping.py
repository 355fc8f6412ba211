"""What is kept how long: fine windows become hours, hours become days, and what nobody needs any more goes.

    keeper.tick()          # a little at a time, in transactions of its own: requests and messages wait meanwhile

A window that was merged is in the wider one for good: no record is in two, and none is lost. An hour that gates look
into (`HoldRow`) stays fine until they have not asked for two days, and so long its day and the one before stay hours:
a day that lies on the moment of a rollout would count for neither side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, exists, func, select, text
from sqlmodel import Session, col

from fleet.evidence.recording import Recorder
from fleet.evidence.rows import HEALTH, MODELS, Kind
from fleet.evidence.windows import DAY, FINE, HOUR, begin
from fleet.lease import Leads, alone
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, HoldRow, SeenRow
from fleet.store.tables import TelemetryRow
from wire.units import show_instant

SUBJECTS: Final = 200
"""Subjects whose windows of one hour or day are merged at once: some 20 ms."""
ROWS: Final = 5000
"""Old rows that go at once."""
IDLE: Final = 30.0
"""Seconds until the next look when there was nothing to do."""
ASKED: Final = 2
"""Days for which an hour stays fine after gates looked into it."""
SEEN_DAYS: Final = 400
"""How long is known which records of a boot came; agents send again what is a day or a month old, not a year."""


@dataclass
class Keeper:
    """`raw` and `events`: how long records stay as they came, and those of the stream of events."""

    database: Database
    recorder: Recorder
    raw: timedelta
    events: timedelta
    clock: Callable[[], datetime]
    leads: Leads = alone
    _next: dict[str, float] = field(default_factory=dict)
    _pruned: int = 0

    def tick(self) -> None:
        """A little of all that is due; nothing where another process leads."""
        now = self.clock()
        work: Callable[[Session, datetime], bool]
        for name, work in (
            ("hours", self._merge_fine),
            ("days", self._merge_hours),
            ("raw", self._prune_raw),
            ("old", self._prune_old),
        ):
            if now.timestamp() >= self._next.get(name, 0.0):
                with self.database.transaction() as session:
                    done = self.leads(session) and work(session, now)
                self._next[name] = now.timestamp() + (0.0 if done else IDLE)

    def _merge_fine(self, session: Session, now: datetime) -> bool:
        return _merge(session, FINE, HOUR, self.recorder.kept.fine, now)

    def _merge_hours(self, session: Session, now: datetime) -> bool:
        return _merge(session, HOUR, DAY, self.recorder.kept.hours, now)

    def _prune_raw(self, session: Session, now: datetime) -> bool:
        """Records are in the order of their arrival, so old ones are the first. Events among them stay for longer."""
        t, old = TelemetryRow, show_instant(now - self.raw)
        first = _first(col(t.id) > self._pruned)
        upto = session.connection().execute(select(func.max(first.c.id)).where(first.c.received < old)).scalar()
        if upto is None:
            return False
        gone = delete(t).where(col(t.id) > self._pruned, col(t.id) <= upto, text("stream <> 'event'"))
        session.connection().execute(gone)
        self._pruned = upto
        return True

    def _prune_old(self, session: Session, now: datetime) -> bool:
        kept, seconds = self.recorder.kept, now.timestamp()
        t, s, day = TelemetryRow, SeenRow, int(seconds // DAY)
        first = _first(col(t.id) > 0)
        events = select(first.c.id).where(first.c.received < show_instant(now - max(self.raw, self.events)))
        removed = _removed(session, delete(t).where(col(t.id).in_(events)))
        removed += _removed(session, delete(s).where(col(s.day) < day - SEEN_DAYS))
        removed += _removed(session, delete(HoldRow).where(col(HoldRow.day) < day - ASKED))
        for kind in (MODELS, HEALTH):
            w = kind.table
            oldest = select(w.subject).where(w.span == DAY, w.begins < seconds - kept.days - DAY).distinct().limit(ROWS)
            removed += _removed(
                session,
                delete(w).where(w.subject.in_(oldest), w.span == DAY, w.begins < seconds - kept.days - DAY),
            )
        gone = delete(EvidenceSubject).where(col(EvidenceSubject.newest) < seconds - kept.days - 2 * DAY)
        if _removed(session, gone):
            self.recorder.forget()
        return removed >= ROWS


def _first(where: Any) -> Any:
    """The oldest records."""
    t = TelemetryRow
    return select(col(t.id), col(t.received)).where(where).order_by(col(t.id)).limit(ROWS).subquery()


def _removed(session: Session, words: Any) -> int:
    return int(session.connection().execute(words).rowcount)


def _merge(session: Session, narrow: int, wide: int, kept: float, now: datetime) -> bool:
    """Merge what is old enough of some subjects. Whether there was any."""
    before = begin(now.timestamp() - kept, wide)
    done = [_merge_some(session, kind, narrow, wide, before, now) for kind in (MODELS, HEALTH)]
    return any(done)


def _merge_some(session: Session, kind: Kind[Any], narrow: int, wide: int, before: int, now: datetime) -> bool:
    w, h, today = kind.table, HoldRow, int(now.timestamp() // DAY)
    first = w.begins - w.begins % wide
    held = exists(col(h.subject)).where(
        col(h.subject) == w.subject,
        col(h.begins) >= first,
        col(h.begins) < first + (HOUR if wide == HOUR else 2 * DAY),
        col(h.day) >= today - ASKED,
    )
    due = (w.span == narrow, w.begins < before, ~held)
    oldest = session.connection().execute(select(w.begins).where(*due).order_by(w.begins).limit(1)).scalar()
    if oldest is None:
        return False
    low = begin(oldest, wide)
    high = low + wide
    of_that = select(w.subject).where(*due, w.begins >= low, w.begins < high).distinct().limit(SUBJECTS)
    subjects = [subject for (subject,) in session.connection().execute(of_that)]
    merged: dict[int, Any] = {}
    for span in (wide, narrow):
        for number, _, window in kind.read(session, subjects, span, low, high if span == narrow else low + 1):
            if number in merged:
                merged[number].merge(window)
            else:
                merged[number] = window
    kind.write(session, [(number, wide, low, window) for number, window in merged.items()])
    session.connection().execute(
        delete(w).where(w.subject.in_(subjects), w.span == narrow, w.begins >= low, w.begins < high)
    )
    return True
