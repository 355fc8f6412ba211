"""What devices tell of their inputs and answers, kept by window, and what their past is made of.

    windows.add(session, records, now)             # in the transaction that stores telemetry
    for digest in ...: windows.read(session, window, digest, tags)
    while windows.fold(session, window): ...       # in small transactions: nobody else may write meanwhile

A row for each device, model and window, for `GAP` windows; then it goes into the device's past, which fades, so the
table does not grow with time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy
from sqlmodel import Session, col, delete, func, select

from fleet.drift.looks import WINDOW, Look, tells, window_of
from fleet.drift.values import ALL
from fleet.evidence.rows import parts
from fleet.store.drift_tables import DriftDay, DriftLook, DriftPast
from fleet.store.tables import Device, EvidenceRow
from fleet.store.upsert import upsert
from wire.evidence import Evidence
from wire.messages import InferenceStats, TelemetryRecord
from wire.units import instant, show_instant

GAP: Final = 3
"""Windows before a window that are not yet its past: a change is held against what was before it began."""
DAYS: Final = 28
"""Windows that a past reaches back."""
KEPT: Final = 90
"""Windows that totals and pasts of devices which are silent are kept."""
MOST_MODELS: Final = 16
"""Models that one device may speak of in one window: a liar makes up digests."""
AHEAD: Final = timedelta(hours=1)
"""By how much a device's clock may be ahead."""
_AT_ONCE: Final = 300

Tags = Callable[[Session, Sequence[str]], Mapping[str, Iterable[str]]]
"""The tags of devices, by device."""


def add(session: Session, records: Iterable[tuple[str, TelemetryRecord]], now: datetime) -> None:
    """Add what new records of devices tell, those of one transaction at once.

    What is older than `GAP` windows comes too late, and is left out. Most records tell nothing, and cost next to
    nothing: looks come once an hour.
    """
    told: dict[str, dict[str, list[tuple[InferenceStats, Look]]]] = defaultdict(lambda: defaultdict(list))
    for device, record in records:
        some = [(stats, Look.of(stats)) for stats in record.inference if not stats.shadow and tells(stats)]
        if some and now - (GAP + 1) * WINDOW < (began := instant(record.start)) < now + AHEAD:
            told[window_of(began)][device].extend(some)
    for window in sorted(told):
        _add(session, window, told[window])


def _add(session: Session, window: str, told: Mapping[str, Sequence[tuple[InferenceStats, Look]]]) -> None:
    """Plain rows, all at once: where people give feedback, most records tell something."""
    devices = sorted(told)
    there = {device: looks for some in parts(devices) for device, looks in _there(session, window, some).items()}
    rows = []
    for device in devices:
        known = there.get(device, {})
        changed = {}
        for stats, look in told[device]:
            if stats.digest not in known and len(known) >= MOST_MODELS:
                continue
            model, before = known.get(stats.digest, (stats.model, None))
            known[stats.digest] = changed[stats.digest] = model, before.plus(look) if before else look
        rows += [
            {"window": window, "digest": digest, "device": device, "model": model, "look": look.text()}
            for digest, (model, look) in changed.items()
        ]
    upsert(session, DriftLook, rows)


_LOOKS: Final = sqlalchemy.select(
    col(DriftLook.device), col(DriftLook.digest), col(DriftLook.model), col(DriftLook.look)
).where(
    col(DriftLook.window) == sqlalchemy.bindparam("of"),
    col(DriftLook.device).in_(sqlalchemy.bindparam("devices", expanding=True)),
)


def _there(session: Session, window: str, devices: Sequence[str]) -> dict[str, dict[str, tuple[str, Look]]]:
    """Model and look of what is known of devices in a window, by device and digest."""
    found = dict[str, dict[str, tuple[str, Look]]]()
    for device, digest, model, look in session.connection().execute(_LOOKS, {"of": window, "devices": devices}):
        found.setdefault(device, {})[digest] = model, Look.parse(look)
    return found


def shifted(window: str, windows: int) -> str:
    """The window that is so many later."""
    return show_instant(instant(window) + windows * WINDOW)


def following(session: Session, window: str) -> str | None:
    """The first window after `window` of which something is known."""
    return session.exec(select(func.min(DriftLook.window)).where(DriftLook.window > window)).one()


def digests(session: Session, window: str) -> list[str]:
    """The models of which something is known in a window."""
    return sorted(session.exec(select(DriftLook.digest).where(DriftLook.window == window).distinct()))


@dataclass(frozen=True)
class Told:
    """One device in a window, its looks still as text: they are parsed by who has the time."""

    device: str
    strata: frozenset[str]
    today: str
    past: str
    recent: tuple[str, ...]


@dataclass(frozen=True)
class Read:
    """Everything that is known of one model in one window."""

    window: str
    digest: str
    model: str
    told: tuple[Told, ...]
    evidence: str
    days: Mapping[str, tuple[str, ...]]


def read(session: Session, window: str, digest: str, tags: Tags) -> Read:
    """What is known of one model in a window, and before it."""
    look, device = DriftLook, Device
    query = (
        sqlalchemy.select(col(look.device), col(look.model), col(look.look), col(device.profile), col(device.group))
        .join(device, col(device.id) == col(look.device))
        .where(col(look.window) == window, col(look.digest) == digest)
        .order_by(col(look.device))
    )
    rows = session.connection().execute(query).all()
    recent: dict[str, list[str]] = defaultdict(list)
    between = sqlalchemy.select(col(look.device), col(look.look)).where(
        col(look.digest) == digest, col(look.window) < window
    )
    for name, text in session.connection().execute(between):
        recent[name].append(text)
    pasts = sqlalchemy.select(col(DriftPast.device), col(DriftPast.look)).where(col(DriftPast.digest) == digest)
    past = {row[0]: row[1] for row in session.connection().execute(pasts)}
    tagged = tags(session, [row[0] for row in rows])
    told = tuple(
        Told(name, _strata(profile, group, tagged.get(name, ())), text, past.get(name, "{}"), tuple(recent[name]))
        for name, _, text, profile, group in rows
    )
    evidence = session.get(EvidenceRow, digest)
    document = evidence.document if evidence is not None else ""
    return Read(window, digest, rows[0][1] if rows else "", told, document, _days(session, window, digest))


def _strata(profile: str, group: str, tags: Iterable[str]) -> frozenset[str]:
    return frozenset({f"profile:{profile}", f"group:{group}", *(f"tag:{tag}" for tag in tags)})


def _days(session: Session, window: str, digest: str) -> dict[str, tuple[str, ...]]:
    """What all saw on the last `DAYS` calm days of the past, by stratum."""
    day = DriftDay
    query = (
        sqlalchemy.select(col(day.stratum), col(day.look))
        .where(col(day.digest) == digest, col(day.calm).is_(True), col(day.window) < shifted(window, -GAP))
        .order_by(col(day.window).desc())
    )
    found: dict[str, list[str]] = defaultdict(list)
    for stratum, text in session.connection().execute(query):
        if len(found[stratum]) < DAYS:
            found[stratum].append(text)
    return {stratum: tuple(texts) for stratum, texts in found.items()}


def reference_of(document: str) -> tuple[Look, int] | None:
    """The reference in the text of a bundle's evidence, and how many examples it comes from."""
    reference = Evidence.from_bytes(document.encode()).reference if document else None
    return (Look.of(reference), reference.n) if reference is not None else None


def fold(session: Session, window: str) -> int:
    """Make some of what is `GAP` windows before `window` the past of its devices; how much. 0: it is done."""
    oldest = (
        select(DriftLook.window, DriftLook.digest)
        .where(DriftLook.window <= shifted(window, -GAP))
        .order_by(DriftLook.window, DriftLook.digest)
        .limit(1)
    )
    found = session.exec(oldest).first()
    if found is None:
        return 0
    then, digest = found
    mine = select(DriftLook.device, DriftLook.look).where(DriftLook.window == then, DriftLook.digest == digest)
    looks = {row[0]: row[1] for row in session.exec(mine.order_by(DriftLook.device).limit(_AT_ONCE))}
    day = session.get(DriftDay, (digest, ALL, then))
    if day is not None and day.calm:
        _into_past(session, digest, then, looks)
    gone = delete(DriftLook).where(col(DriftLook.window) == then, col(DriftLook.digest) == digest)
    session.exec(gone.where(col(DriftLook.device).in_(looks)))
    return len(looks)


def _into_past(session: Session, digest: str, window: str, looks: Mapping[str, str]) -> None:
    of_these = select(DriftPast).where(DriftPast.digest == digest, col(DriftPast.device).in_(looks))
    known = {past.device: past for past in session.exec(of_these)}
    for device, text in looks.items():
        past = known.get(device) or DriftPast(digest=digest, device=device, window=window, look="{}")
        past.look = Look.parse(past.look).faded(1 - 1 / DAYS).plus(Look.parse(text)).text()
        past.window = window
        session.add(past)


def forget(session: Session, window: str) -> None:
    """What is too long ago."""
    before = shifted(window, -KEPT)
    session.exec(delete(DriftDay).where(col(DriftDay.window) < before))
    session.exec(delete(DriftPast).where(col(DriftPast.window) < before))
