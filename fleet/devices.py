"""What the fleet knows of its devices: who is there, what they run, what was refused from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from sqlmodel import Session, col, delete, func, select

from fleet import ledgers
from fleet.errors import AnotherKey, NotFound
from fleet.store.database import Database
from fleet.store.shadow_table import DeviceShadow
from fleet.store.tables import Device, DeviceStats, SecurityRow, TelemetryRow
from fleet.trust.certificates import certificates_of, revoke_all
from wire.messages import Presence, Reported
from wire.sketch import Sketch
from wire.units import instant, show_instant

ALARM_FOR: Final = timedelta(days=1)
"""How long a security event shows in the status of the fleet."""
SECURITY_HELD = 100
"""Refused things kept per device: a flood of forgeries must not fill the disk."""
EVENTS: Final = "event"
"""The stream of telemetry with what people should know of."""
EVENTS_SHOWN: Final = 20
STATUSES: Final = ("online", "offline", "enrolling", "pending", "rejected", "retiring", "retired", "revoked")


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


def last_report(device: Device) -> Reported | None:
    """The newest report, if there is one."""
    return Reported.from_bytes(device.reported.encode()) if device.reported else None


def record_refusal(session: Session, device: str, subject: str, reason: str, now: datetime) -> None:
    """Note what was refused, and forget the oldest beyond `SECURITY_HELD`.

    The same again takes the place of itself: whoever tries one thing a hundred times must not push the rest out.
    """
    mine, reason = select(SecurityRow).where(SecurityRow.device == device), reason[:1000]
    for same in session.exec(mine.where(SecurityRow.subject == subject, SecurityRow.reason == reason)):
        session.delete(same)
    session.add(SecurityRow(device=device, at=show_instant(now), subject=subject, reason=reason))
    session.flush()
    newest_first = mine.order_by(col(SecurityRow.id).desc())
    oldest = session.exec(newest_first.offset(SECURITY_HELD - 1).limit(1)).first()
    if oldest is not None:
        session.exec(delete(SecurityRow).where(col(SecurityRow.device) == device, col(SecurityRow.id) < oldest.id))


@contextmanager
def alarmed(database: Database, device: str, subject: str, clock: Callable[[], datetime]) -> Iterator[None]:
    """Note an `AnotherKey` as a security event of the device, if it is known, and raise it on.

    To be put around a transaction: what a transaction notes is gone when it ends with an error.
    """
    try:
        yield
    except AnotherKey as e:
        with database.transaction() as session:
            if session.get(Device, device) is not None:
                record_refusal(session, device, subject, str(e), clock())
        raise


def leave(session: Session, device: Device, state: str, reason: str, now: datetime) -> None:
    """A device is out: no certificate, kit, order or key of it is good any more. `state`: revoked or retired.

    The caller publishes its desired state, which is empty now, and has `Revocations` applied, once the transaction is
    through.
    """
    revoke_all(session, device, reason, now)
    device.state, device.online = state, False
    device.token_hash, device.token_used, device.request = "", True, ""
    device.sealing_key = device.desired_envelope = device.command_envelope = device.command_expires = ""
    device.desired_models = "[]"
    session.exec(delete(DeviceShadow).where(col(DeviceShadow.device) == device.id))
    session.add(device)


def retired(session: Session, device: Device, now: datetime) -> None:
    """A device said that it wiped itself, or is not waited for. The caller's duty is that of `leave`."""
    leave(session, device, "retired", "retired", now)


def status(device: Device) -> str:
    """One of `STATUSES`."""
    return _status(device.state, online=device.online)


def _status(state: str, *, online: bool) -> str:
    if state == "new":
        return "enrolling"
    if state != "enrolled":
        return state
    return "online" if online else "offline"


def counts(session: Session) -> dict[str, int]:
    """How many devices are in each status."""
    found = dict.fromkeys(STATUSES, 0)
    grouped = select(Device.state, Device.online, func.count()).group_by(col(Device.state), col(Device.online))
    for state, online, count in session.exec(grouped):
        found[_status(state, online=online)] += count
    return found


def telemetry_counts(session: Session) -> dict[str, int]:
    """Stored records and those that came again, over all devices."""
    query = select(func.sum(DeviceStats.records), func.sum(DeviceStats.duplicates))
    records, duplicates = session.exec(query).one()
    return {"records": records or 0, "duplicates": duplicates or 0}


def security_counts(session: Session, now: datetime) -> dict[str, int]:
    """Events of the last `ALARM_FOR` and the devices they are of: what the fleet refused, and what devices report."""
    since = now - ALARM_FOR
    rows = session.exec(select(SecurityRow.device).where(col(SecurityRow.at) >= show_instant(since))).all()
    found = Counter(rows)
    for device in session.exec(select(Device).where(col(Device.reported).contains('"security":[{'))):
        report = last_report(device)
        found[device.id] += sum(instant(e.at) >= since for e in report.security) if report else 0
    return {"events": found.total(), "devices": sum(n > 0 for n in found.values())}


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
        "group": device.group,
        "status": status(device),
        "batch": device.batch,
        "certificates": _certificates(session, device),
        "hardware": reported.get("hardware"),
        "emulated": reported.get("emulated"),
        "agent": reported.get("agent"),
        "enrolled": device.enrolled,
        "last_seen": device.last_seen,
        "desired": json.loads(device.desired_models),
        "slots": reported.get("slots", []),
        "updates": reported.get("updates", []),
        "shadows": reported.get("shadows", []),
        "security": [*reported.get("security", []), *_refusals(session, device.id)],
        "stats": _stats(stats),
        "ledger": ledgers.view(session, device.id),
        "events": _events(session, device.id),
        "health": json.loads(stats.health) if stats.health else None,
    }


def _certificates(session: Session, device: Device) -> list[dict[str, str]]:
    """Those that are good for something, or were until they were revoked; replaced ones are many and say little."""
    rows = [row for row in certificates_of(session, device) if row.state != "old"]
    names = ("serial", "state", "issued", "expires", "reason")
    return [{name: getattr(row, name) for name in names} for row in rows]


def _events(session: Session, device: str) -> list[dict[str, Any]]:
    """The newest ones that the device told of, the oldest of them first."""
    mine = select(TelemetryRow.record).where(TelemetryRow.device == device, TelemetryRow.stream == EVENTS)
    rows = session.exec(mine.order_by(col(TelemetryRow.id).desc()).limit(EVENTS_SHOWN)).all()
    return [event for row in reversed(rows) for event in json.loads(row).get("events", [])]


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
