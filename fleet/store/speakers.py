"""Devices that only send telemetry: of their long rows no more is read and written than that needs.

speakers = read(session, ["kitchen-1", "kitchen-2"])     # those that renew no certificate: by id
speakers["kitchen-1"].ack_seq += 1
write(session, speakers.values())
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import BindParameter, Dialect, bindparam, select, update
from sqlmodel import Session, col

from fleet.store.tables import Device
from fleet.store.upsert import send, worded


@dataclass(slots=True)
class Speaker:
    """Columns of a `Device` that renews no certificate now."""

    id: str
    profile: str
    state: str
    certificate: str
    next_certificate: str
    desired_epoch: int
    desired_seq: int
    ack_seq: int
    batch_starts: int
    batch_sent: int
    last_seen: str | None
    online: bool
    gone: str | None
    interval_s: float


_READ = tuple(Speaker.__dataclass_fields__)
_SPEAKING = select(*(col(getattr(Device, name)) for name in _READ)).where(
    col(Device.id).in_(bindparam("devices", expanding=True)), col(Device.next_certificate) == ""
)
_WRITTEN = ("ack_seq", "batch_starts", "batch_sent", "last_seen", "online", "gone", "interval_s")


def read(session: Session, devices: Sequence[str]) -> dict[str, Speaker]:
    """Those of some devices, by id."""
    rows = session.connection().execute(_SPEAKING, {"devices": devices})
    return {row[0]: Speaker(*row) for row in rows}


def write(session: Session, speakers: Iterable[Speaker]) -> None:
    """What telemetry changes of a device."""
    rows = [{"of": one.id, **{name: getattr(one, name) for name in _WRITTEN}} for one in speakers]
    if rows:
        connection = session.connection()
        send(connection, *_update(connection.dialect), rows)


@lru_cache
def _update(dialect: Dialect) -> tuple[str, Sequence[str] | None]:
    table = Device.__table__  # type: ignore[attr-defined]
    values: dict[str, BindParameter[object]] = {name: bindparam(name) for name in _WRITTEN}
    return worded(update(table).where(table.c.id == bindparam("of")).values(values), (), dialect)
