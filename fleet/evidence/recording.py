"""Evidence is written: what the records of one transaction say is added up first, and each window written once.

    recorder = Recorder()                       # one for a fleet; it remembers the numbers of subjects
    sheet = recorder.sheet(session, now)
    sheet.add("kitchen-1", "raspberry-pi-4", record)
    sheet.write()                               # in the transaction that stores the records
    recorder.forget()                           # when that transaction was undone

Each record counts twice: for its device, and for all devices of the profile (`device` ""), which a model's page reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, select
from sqlmodel import Session, col

from fleet.evidence.rows import HEALTH, MODELS, Kind, T, parts
from fleet.evidence.windows import HealthSum, Kept, Window, place, unasked
from fleet.store.evidence_tables import EvidenceSubject, GoldenRow
from fleet.store.upsert import upsert
from wire.messages import InferenceStats, TelemetryRecord
from wire.units import instant, show_instant

MOST_SUBJECTS: Final = 64
"""Models that one device may speak of: a liar makes up digests, each of them a row of its own for ever."""
REMEMBERED: Final = 200_000
"""Subjects held in memory."""


class Key(NamedTuple):
    """What names a subject."""

    device: str
    digest: str
    profile: str
    shadow: bool


@dataclass(slots=True)
class Subject:
    """A row of `EvidenceSubject`, as far as recording needs it."""

    id: int
    newest: int
    restarts: int | None


_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
Place = tuple[int, int]
"""Span and begin of a window."""


@dataclass
class Recorder:
    """Makes sheets. What it remembers is what was committed: `forget` after a transaction that was not."""

    kept: Kept = field(default_factory=Kept)
    subjects: dict[Key, Subject] = field(default_factory=dict)

    def sheet(self, session: Session, now: datetime) -> Sheet:
        """For the records of one transaction."""
        if len(self.subjects) > REMEMBERED:
            self.subjects.clear()
        return Sheet(self, session, now.timestamp())

    def forget(self) -> None:
        """A transaction was undone: what was remembered of it is not true."""
        self.subjects.clear()


@dataclass
class Sheet:
    """What the records of one transaction add to windows. `now` in seconds since 1970."""

    recorder: Recorder
    session: Session
    now: float
    windows: dict[Place, dict[Key, Window]] = field(default_factory=dict)
    health: dict[Place, dict[Key, HealthSum]] = field(default_factory=dict)
    models: dict[Key, str] = field(default_factory=dict)
    told: list[tuple[Key, Place, int, TelemetryRecord]] = field(default_factory=list)

    def add(self, device: str, profile: str, record: TelemetryRecord) -> None:
        """Count one record, whose window by its own times it falls into."""
        if not record.inference and record.health is None:
            return
        started, ended = instant(record.start).timestamp(), instant(record.end).timestamp()
        where = place(started, self.now, self.recorder.kept)
        if where is None:
            return
        ends = int(min(max(started, ended), max(self.now, started)))
        for stats in record.inference:
            if _DIGEST.fullmatch(stats.digest):
                self._add_stats(device, profile, stats, where, ends)
        if record.health is not None:
            self.models[Key(device, "", "", False)] = ""
            self.told.append((Key(device, "", "", False), where, ends, record))

    def _add_stats(self, device: str, profile: str, stats: InferenceStats, where: Place, ends: int) -> None:
        window = Window.of(stats, ends)
        found = self.windows.setdefault(where, {})
        for key in (Key("", stats.digest, profile, stats.shadow), Key(device, stats.digest, profile, stats.shadow)):
            self.models[key] = _name(stats.model)
            if key in found:
                found[key].merge(window)
            elif key.device:
                found[key] = window  # the last one to have it: what is merged into it from now on is its own
            else:
                found[key] = Window()
                found[key].merge(window)

    def write(self) -> None:
        """Merge all into the database."""
        newest: dict[Key, int] = {}
        for (_, begins), found in self.windows.items():
            for key in found:
                newest[key] = max(newest.get(key, 0), begins)
        for key, (_, begins), _, _ in self.told:
            newest[key] = max(newest.get(key, 0), begins)
        subjects = self._subjects(newest)
        changed: set[Key] = set()
        for key, begins in newest.items():
            if key in subjects and begins > subjects[key].newest:
                subjects[key].newest = begins
                changed.add(key)
        changed |= self._count_restarts(subjects)
        self._write_windows(MODELS, self.windows, subjects)
        self._write_windows(HEALTH, self.health, subjects)
        self._write_subjects({key: subjects[key] for key in changed})

    def _count_restarts(self, subjects: dict[Key, Subject]) -> set[Key]:
        changed = set()
        for key, where, ends, record in self.told:
            if (subject := subjects.get(key)) is None or record.health is None:
                continue
            said, before = unasked(record.health), subject.restarts
            # A lower count is of a memory that began anew.
            new = 0 if said is None or before is None else said - before if said >= before else said
            if said is not None and said != before:
                subject.restarts = said
                changed.add(key)
            one, found = HealthSum.of(record.health, ends, new), self.health.setdefault(where, {})
            if key in found:
                found[key].merge(one)
            else:
                found[key] = one
        return changed

    # --- subjects ---------------------------------------------------------------------------------------------------

    def _subjects(self, wanted: Iterable[Key]) -> dict[Key, Subject]:
        """Those of some keys, made where they are missing; without those that are one too many of a device."""
        known = self.recorder.subjects
        missing = [key for key in wanted if key not in known]
        if missing:
            self._load(missing)
            self._make([key for key in missing if key not in known])
        return {key: known[key] for key in wanted if key in known}

    def _load(self, missing: list[Key]) -> None:
        s = EvidenceSubject
        columns: list[Any] = [s.id, s.newest, s.restarts, s.device, s.digest, s.profile, s.shadow]
        query = select(*columns).where(
            col(s.device).in_({key.device for key in missing}), col(s.digest).in_({key.digest for key in missing})
        )
        for number, newest, restarts, *named in self.session.connection().execute(query):
            self.recorder.subjects[Key(*named)] = Subject(number, newest, restarts)

    def _make(self, missing: list[Key]) -> None:
        refused = self._refused(missing)
        rows = [
            EvidenceSubject(**key._asdict(), model=self.models[key], newest=0) for key in missing if key not in refused
        ]
        self.session.add_all(rows)
        self.session.flush()
        for row in rows:
            assert row.id is not None
            self.recorder.subjects[Key(row.device, row.digest, row.profile, row.shadow)] = Subject(row.id, 0, None)

    def _refused(self, missing: list[Key]) -> set[Key]:
        """New subjects of devices that have as many as they may, with those of all devices that only they speak of."""
        s, refused = EvidenceSubject, set()
        devices = {key.device for key in missing if key.device}
        counts: dict[str, int] = dict.fromkeys(devices, 0)
        for (device,) in self.session.connection().execute(select(col(s.device)).where(col(s.device).in_(devices))):
            counts[device] += 1
        for key in missing:
            if key.device and key.digest:
                counts[key.device] += 1
                if counts[key.device] > MOST_SUBJECTS:
                    refused.add(key)
        spoken = {key[1:] for key in self.models if key.device and key not in refused}
        return refused | {key for key in missing if not key.device and key[1:] not in spoken}

    def _write_subjects(self, changed: dict[Key, Subject]) -> None:
        rows = [
            {**key._asdict(), "model": self.models[key], "id": s.id, "newest": s.newest, "restarts": s.restarts}
            for key, s in changed.items()
        ]
        upsert(self.session, EvidenceSubject, rows)

    # --- windows ----------------------------------------------------------------------------------------------------

    def _write_windows(self, kind: Kind[T], sheet: Mapping[Place, dict[Key, T]], subjects: dict[Key, Subject]) -> None:
        rows = []
        for (span, begins), named in sheet.items():
            new = {subjects[key].id: window for key, window in named.items() if key in subjects}
            for number, _, before in kind.read(self.session, new, span, begins, begins + 1):
                new[number].merge(before)
            rows += [(number, span, begins, window) for number, window in new.items()]
        kind.write(self.session, rows)


def _name(model: str) -> str:
    """What a device calls a model, as text that every database takes."""
    return model.replace("\0", "")[:200]


_GOLDEN: Final = select(col(GoldenRow.device), col(GoldenRow.digest), col(GoldenRow.held)).where(
    col(GoldenRow.device).in_(bindparam("devices", expanding=True))
)


def note_golden(session: Session, told: Mapping[str, Mapping[str, bool]], now: datetime) -> None:
    """Whether the golden sets of models (by digest) held on devices, as they say. Only what changed is written."""
    g = GoldenRow
    known: dict[str, dict[str, bool]] = {device: {} for device, held in told.items() if held}
    for some in parts(sorted(known)):
        for device, digest, held in session.connection().execute(_GOLDEN, {"devices": some}):
            known[device][digest] = held
    rows, at = [], show_instant(now)
    for device, mine in known.items():
        room = MOST_SUBJECTS - len(mine)
        for digest, held in told[device].items():
            room -= digest not in mine
            if mine.get(digest) != held and (digest in mine or room >= 0):
                rows.append({"device": device, "digest": digest, "held": held, "at": at})
    upsert(session, g, rows)
