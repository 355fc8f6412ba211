"""Devices as the API shows them: one, or a page of hundreds in a few queries.

views(session, rows, hearing)        # a query for each device and table would hold up the fleet for seconds
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import func
from sqlalchemy import select as columns
from sqlalchemy import text as sql
from sqlmodel import Session, SQLModel, col, select

from fleet import ledgers
from fleet.devices import heard, last_report, status
from fleet.health.status import Hearing, age, ages
from fleet.store.tables import CertificateRow, Device, DeviceStats, LedgerRow, SecurityRow, TelemetryRow
from fleet.tags import tags_of
from wire.messages import Reported
from wire.sketch import Sketch
from wire.units import show_instant

EVENTS_SHOWN: Final = 20
_TOGETHER: Final = 500
Row = TypeVar("Row", bound=SQLModel)


@dataclass(frozen=True)
class _Known:
    """What is known of some devices, by their ids."""

    stats: Mapping[str, DeviceStats]
    tags: Mapping[str, frozenset[str]]
    certificates: Mapping[str, list[CertificateRow]]
    ledgers: Mapping[str, list[LedgerRow]]
    refusals: Mapping[str, list[SecurityRow]]
    events: Mapping[str, list[str]]


def view(session: Session, device: Device, hearing: Hearing) -> dict[str, Any]:
    """One device. `ages` says of its figures how old they are, and which are stale."""
    return views(session, [device], hearing)[0]


def views(session: Session, rows: Sequence[Device], hearing: Hearing) -> list[dict[str, Any]]:
    """Devices in the order of their rows."""
    session.flush()
    groups = (rows[i : i + _TOGETHER] for i in range(0, len(rows), _TOGETHER))
    return [_view(row, known, hearing) for group in groups for known in [_read(session, group)] for row in group]


def _read(session: Session, rows: Sequence[Device]) -> _Known:
    ids = [row.id for row in rows]
    c, ledger, refused = CertificateRow, LedgerRow, SecurityRow
    # Those that are good for something, or were until they were revoked; replaced ones are many and say little.
    certificates = select(c).where(col(c.device).in_(ids), c.state != "old").order_by(col(c.issued).desc())
    streams = select(ledger).where(col(ledger.device).in_(ids)).order_by(col(ledger.stream))
    refusals = select(refused).where(col(refused.device).in_(ids)).order_by(col(refused.id))
    stats = session.exec(select(DeviceStats).where(col(DeviceStats.device).in_(ids))).all()
    return _Known(
        {one.device: one for one in stats},
        tags_of(session, ids),
        _by_device(session.exec(certificates).all()),
        _by_device(session.exec(streams).all()),
        _by_device(session.exec(refusals).all()),
        _events(session, ids),
    )


def _by_device(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.device, []).append(row)  # type: ignore[attr-defined]
    return found


def _events(session: Session, ids: Sequence[str]) -> dict[str, list[str]]:
    """The newest records of events of each device, the oldest of them first."""
    t = TelemetryRow
    place = func.row_number().over(partition_by=col(t.device), order_by=col(t.id).desc()).label("place")
    # In so many words: with a parameter, the index of events would not be used.
    mine = columns(col(t.device), col(t.id), col(t.record), place).where(
        col(t.device).in_(ids), sql("stream = 'event'")
    )
    ranked = mine.subquery()
    newest = columns(ranked.c.device, ranked.c.record).where(ranked.c.place <= EVENTS_SHOWN).order_by(ranked.c.id)
    found: dict[str, list[str]] = {}
    for device, record in session.connection().execute(newest):
        found.setdefault(device, []).append(record)
    return found


def _view(device: Device, known: _Known, hearing: Hearing) -> dict[str, Any]:
    report, stats = last_report(device), known.stats[device.id]
    reported = report.to_value() if report else {}
    return {
        "device": device.id,
        "profile": device.profile,
        "group": device.group,
        "status": status(device, hearing),
        "ages": _ages(device, report, stats, hearing),
        "tags": sorted(known.tags.get(device.id, ())),
        "note": device.note,
        "batch": device.batch,
        "certificates": [_certificate(row) for row in known.certificates.get(device.id, ())],
        "hardware": reported.get("hardware"),
        "emulated": reported.get("emulated"),
        "agent": reported.get("agent"),
        "enrolled": device.enrolled,
        "last_seen": device.last_seen,
        "gone": device.gone,
        "desired": json.loads(device.desired_models),
        "slots": reported.get("slots", []),
        "updates": reported.get("updates", []),
        "shadows": reported.get("shadows", []),
        "security": [*reported.get("security", []), *map(_refusal, known.refusals.get(device.id, ()))],
        "stats": _stats(stats),
        "ledger": [ledgers.shown(row) for row in known.ledgers.get(device.id, ())],
        "events": [event for r in known.events.get(device.id, ()) for event in json.loads(r).get("events", [])],
        "health": json.loads(stats.health) if stats.health else None,
    }


def _ages(device: Device, report: Reported | None, stats: DeviceStats, hearing: Hearing) -> dict[str, dict[str, Any]]:
    """Of `slots`: since the device said last what it runs, which it says again only when that changes."""
    times = {"seen": device.last_seen, "stats": stats.inference_at, "health": stats.health_at}
    shown = ages(heard(device), hearing, times)
    said = age(min(report.time, show_instant(hearing.now)) if report else None, math.inf, hearing.now)
    return {**shown, "slots": said | {"stale": said["stale"] or shown["seen"]["stale"]}}


def _certificate(row: CertificateRow) -> dict[str, str]:
    return {name: getattr(row, name) for name in ("serial", "state", "issued", "expires", "reason")}


def _refusal(row: SecurityRow) -> dict[str, str]:
    return {"at": row.at, "subject": row.subject, "reason": row.reason}


def _stats(stats: DeviceStats) -> dict[str, Any]:
    latency = Sketch.from_value(json.loads(stats.latency))
    return {
        "requests": stats.requests,
        "errors": stats.errors,
        "latency_p50_ms": latency.quantile(0.5),
        "latency_p99_ms": latency.quantile(0.99),
        "feedback_total": stats.feedback_total,
        "feedback_correct": stats.feedback_correct,
        "records": stats.records,
        "duplicates": stats.duplicates,
    }
