"""What the fleet knows of its devices: who is there, what they run, what was refused from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy
from sqlmodel import Session, col, delete, func, select

from fleet.errors import AnotherKey, NotFound
from fleet.health.status import INTERVAL, WORDS, Heard, Hearing, Word, age, freshness, interval_of
from fleet.store.database import Database
from fleet.store.shadow_table import DeviceShadow
from fleet.store.speakers import Speaker
from fleet.store.tables import Device, DeviceStats, SecurityRow
from fleet.trust.certificates import revoke_all
from wire.messages import Presence, Reported
from wire.units import instant, show_instant

ALARM_FOR: Final = timedelta(days=1)
"""How long a security event shows in the status of the fleet."""
SECURITY_HELD = 100
"""Refused things kept per device: a flood of forgeries must not fill the disk."""
STATUSES: Final = (*WORDS, "enrolling", "pending", "rejected", "retiring", "retired", "revoked")


def find(session: Session, device: str) -> Device:
    """A device. Raises `NotFound`."""
    row = session.get(Device, device)
    if row is None:
        raise NotFound(f"device {device[:63]!r}: there is none of that id: `shoal device list` shows those there are")
    return row


def take_presence(device: Device, presence: Presence, now: datetime) -> None:
    """A birth counts; a death only buries the birth of its own session, so that an old will cannot bury a new one."""
    if presence.online:
        is_here(device)
        device.session = presence.session
    elif device.session == presence.session:
        is_gone(device, now)


def is_here(device: Device | Speaker) -> None:
    """Its connection stands."""
    device.online, device.gone = True, None


def is_gone(device: Device, now: datetime) -> None:
    """Its will or its silence says that it is away: since now, unless that was said before."""
    device.gone = device.gone or show_instant(now)
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
    device.state, device.online, device.gone = state, False, None
    device.token_hash, device.token_used, device.request = "", True, ""
    device.sealing_key = device.desired_envelope = device.command_envelope = device.command_expires = ""
    device.desired_models = "[]"
    session.exec(delete(DeviceShadow).where(col(DeviceShadow.device) == device.id))
    session.add(device)


def retired(session: Session, device: Device, now: datetime) -> None:
    """A device said that it wiped itself, or is not waited for. The caller's duty is that of `leave`."""
    leave(session, device, "retired", "retired", now)


def heard(device: Device) -> Heard:
    """What its line is judged by."""
    return _heard(device.online, device.gone, device.last_seen, device.interval_s)


def _heard(online: bool, gone: str | None, last: str | None, interval_s: float) -> Heard:
    """Of texts that we wrote: they are not checked again, as there may be very many."""
    at = datetime.fromisoformat
    return Heard(online, at(gone) if gone else None, at(last) if last else None, interval_of(interval_s))


def standing(device: Device) -> str:
    """The word for its state, whatever its line does: one of `STATUSES` or `enrolled`."""
    return "enrolling" if device.state == "new" else device.state


def status(device: Device, hearing: Hearing) -> str:
    """One of `STATUSES`."""
    return freshness(heard(device), hearing) if device.state == "enrolled" else standing(device)


def counts(session: Session, hearing: Hearing) -> dict[str, int]:
    """How many devices are in each status."""
    found = dict.fromkeys(STATUSES, 0)
    for state, number in session.exec(select(Device.state, func.count()).group_by(col(Device.state))):
        if state != "enrolled":
            found["enrolling" if state == "new" else state] += number
    for word in statuses(session, hearing).values():
        found[word] += 1
    return found


def statuses(session: Session, hearing: Hearing) -> dict[str, Word]:
    """The word for the line of every enrolled device, by its id. Reads columns only: there may be very many."""
    d = Device
    columns = (col(d.id), col(d.online), col(d.gone), col(d.last_seen), col(d.interval_s))
    # Of sqlalchemy itself: sqlmodel's select takes four columns at most.
    query = sqlalchemy.select(*columns).where(col(d.state) == "enrolled")
    session.flush()
    found = session.connection().execute(query)
    return {id_: freshness(_heard(on, gone, last, every), hearing) for id_, on, gone, last, every in found}


def telemetry_counts(session: Session, hearing: Hearing) -> dict[str, Any]:
    """Stored records and those that came again, over all devices, and how old the newest news of one is."""
    query = select(func.sum(DeviceStats.records), func.sum(DeviceStats.duplicates), func.max(DeviceStats.health_at))
    records, duplicates, newest = session.exec(query).one()
    allowed = hearing.allowed(INTERVAL).total_seconds()
    return {"records": records or 0, "duplicates": duplicates or 0, "newest": age(newest, allowed, hearing.now)}


def security_counts(session: Session, now: datetime) -> dict[str, int]:
    """Events of the last `ALARM_FOR` and the devices they are of: what the fleet refused, and what devices report."""
    since = now - ALARM_FOR
    rows = session.exec(select(SecurityRow.device).where(col(SecurityRow.at) >= show_instant(since))).all()
    found = Counter(rows)
    for device in session.exec(select(Device).where(col(Device.reported).contains('"security":[{'))):
        report = last_report(device)
        found[device.id] += sum(instant(e.at) >= since for e in report.security) if report else 0
    return {"events": found.total(), "devices": sum(n > 0 for n in found.values())}


def active_counts(session: Session, hearing: Hearing) -> Mapping[str, tuple[int, int]]:
    """How many devices say of each manifest digest that it is in an active slot, and how many of them are online."""
    found: dict[str, tuple[int, int]] = {}
    for device in session.exec(select(Device).where(col(Device.reported) != "")):
        report = last_report(device)
        active = {s.digest for s in report.slots if s.slot == "active"} if report else set()
        online = status(device, hearing) == "online"
        for digest in active:
            number, fresh = found.get(digest, (0, 0))
            found[digest] = (number + 1, fresh + online)
    return found
