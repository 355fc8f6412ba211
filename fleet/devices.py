"""What the fleet knows of its devices: who is there, what they run, what was refused from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, delete, func, select

from fleet.errors import NotFound, Untrusted
from fleet.store.tables import Device, DeviceStats, SecurityRow
from wire.messages import Presence, Reported
from wire.sketch import Sketch
from wire.units import show_instant

SECURITY_HELD = 100
"""Refused things kept per device: a flood of forgeries must not fill the disk."""


def find(session: Session, device: str) -> Device:
    """A device. Raises `NotFound`."""
    row = session.get(Device, device)
    if row is None:
        raise NotFound(f"device {device[:63]!r}: there is none of that id: `shoal device list` shows those there are")
    return row


def take_presence(device: Device, presence: Presence) -> None:
    """A birth counts; a death only buries the birth of its own session, so that an old will cannot bury a new one."""
    if presence.online:
        device.online, device.session = True, presence.session
    elif device.session == presence.session:
        device.online = False


def take_report(device: Device, reported: Reported) -> bool:
    """Keep a verified report; False for one taken before. Raises `Untrusted` for an older one of the same boot."""
    last = last_report(device)
    if last is not None and last.boot == reported.boot:
        if reported.seq == last.seq:
            return False
        if reported.seq < last.seq:
            raise Untrusted(f"report {reported.seq} of {device.id}: report {last.seq} of the same boot came before")
    device.reported = reported.to_bytes().decode()
    return True


def last_report(device: Device) -> Reported | None:
    """The newest report, if there is one."""
    return Reported.from_bytes(device.reported.encode()) if device.reported else None


def record_refusal(session: Session, device: str, subject: str, reason: str, now: datetime) -> None:
    """Note what was refused, and forget the oldest beyond `SECURITY_HELD`."""
    session.add(SecurityRow(device=device, at=show_instant(now), subject=subject, reason=reason[:1000]))
    session.flush()
    mine = select(SecurityRow.id).where(SecurityRow.device == device).order_by(col(SecurityRow.id).desc())
    oldest = session.exec(mine.offset(SECURITY_HELD - 1).limit(1)).first()
    if oldest is not None:
        session.exec(delete(SecurityRow).where(col(SecurityRow.device) == device, col(SecurityRow.id) < oldest))


def status(device: Device) -> str:
    """`enrolling`, `online` or `offline`."""
    if device.enrolled is None:
        return "enrolling"
    return "online" if device.online else "offline"


def counts(session: Session) -> dict[str, int]:
    """How many devices are in each status."""
    found = {"online": 0, "offline": 0, "enrolling": 0}
    for device in session.exec(select(Device)):
        found[status(device)] += 1
    return found


def telemetry_counts(session: Session) -> dict[str, int]:
    """Stored records and those that came again, over all devices."""
    query = select(func.sum(DeviceStats.records), func.sum(DeviceStats.duplicates))
    records, duplicates = session.exec(query).one()
    return {"records": records or 0, "duplicates": duplicates or 0}


def active_counts(session: Session) -> Mapping[str, int]:
    """How many devices have each manifest digest in an active slot."""
    found: dict[str, int] = {}
    for device in session.exec(select(Device).where(col(Device.reported) != "")):
        report = last_report(device)
        active = {s.digest for s in report.slots if s.slot == "active"} if report else set()
        for digest in active:
            found[digest] = found.get(digest, 0) + 1
    return found


def view(session: Session, device: Device) -> dict[str, Any]:
    """A device as the API shows it."""
    report = last_report(device)
    reported = report.to_value() if report else {}
    stats = session.get_one(DeviceStats, device.id)
    return {
        "device": device.id,
        "profile": device.profile,
        "status": status(device),
        "hardware": reported.get("hardware"),
        "emulated": reported.get("emulated"),
        "agent": reported.get("agent"),
        "enrolled": device.enrolled,
        "last_seen": device.last_seen,
        "desired": json.loads(device.desired_models),
        "slots": reported.get("slots", []),
        "updates": reported.get("updates", []),
        "security": [*reported.get("security", []), *_refusals(session, device.id)],
        "stats": _stats(stats),
        "health": json.loads(stats.health) if stats.health else None,
    }


def _refusals(session: Session, device: str) -> list[dict[str, str]]:
    rows = session.exec(select(SecurityRow).where(SecurityRow.device == device).order_by(col(SecurityRow.id)))
    return [{"at": row.at, "subject": row.subject, "reason": row.reason} for row in rows]


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
