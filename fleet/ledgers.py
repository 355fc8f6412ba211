"""Ledgers: what devices say of where their telemetry went, held against what is stored here.

    ledgers = Ledgers.of(session, devices)                    # all that a transaction needs
    ledgers.note_stored(device, records)                      # with every batch
    faults = ledgers.hold_against(device, batch, epoch)       # afterwards: what does not balance now, in words
    ledgers.write()

A device counts since its memory began; the fleet counts since it knows the device. `offset` is the difference, taken
when another memory speaks for the first time, and after a restore, which loses what came since the backup.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

import orjson
import sqlalchemy
from sqlmodel import Session, col, select

from fleet.errors import Malformed
from fleet.store.tables import LedgerRow
from fleet.store.upsert import upsert
from wire.ledger import MAX_STREAMS, StreamLedger, fault
from wire.messages import TelemetryBatch, TelemetryRecord

FIRST_STREAM: Final = "inference"
"""What the records of an agent of the first contract count as: it names no stream."""


@dataclass(frozen=True)
class Memory:
    """What counts on a device, and in which epoch of the fleet it is compared."""

    name: str
    epoch: int


def stream_of(record: TelemetryRecord) -> str:
    """The stream that a record counts in."""
    return record.stream or FIRST_STREAM


@dataclass
class _Row:
    """A `LedgerRow` that no session watches: thousands of them are read and written a second."""

    device: str
    stream: str
    stored: int = 0
    merged: int = 0
    memory: str = ""
    epoch: int = 0
    offset: int = 0
    merged_before: int = 0
    lost: int = 0
    fault: str = ""
    document: str = ""


_OF_DEVICES: Final = sqlalchemy.select(*(col(getattr(LedgerRow, f.name)) for f in fields(_Row))).where(
    col(LedgerRow.device).in_(sqlalchemy.bindparam("devices", expanding=True))
)


@dataclass
class Ledgers:
    """The ledgers of the devices of one transaction, by device and stream."""

    session: Session
    rows: dict[tuple[str, str], _Row]
    changed: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def of(cls, session: Session, devices: Iterable[str]) -> Self:
        """Those of some devices, read at once; `write` writes them."""
        rows = (_Row(*row) for row in session.connection().execute(_OF_DEVICES, {"devices": list(devices)}))
        return cls(session, {(row.device, row.stream): row for row in rows})

    def note_stored(self, device: str, records: Iterable[TelemetryRecord]) -> None:
        """Count what is stored now. Raises `Malformed` for more streams than a device may have."""
        for record in records:
            row = self._row(device, stream_of(record))
            row.stored += 1
            row.merged += record.merged

    def hold_against(self, device: str, batch: TelemetryBatch, epoch: int) -> list[str]:
        """Compare what the device says with what is stored, this batch included: what is wrong and was not before.

        Raises `Malformed` for more streams than a device may have.
        """
        faults = []
        carried = Counter(stream_of(record) for record in batch.records)
        for ledger in batch.ledger:
            row = self._row(device, ledger.stream)
            before: dict[str, Any] | None = orjson.loads(row.document) if row.document else None
            row.document = orjson.dumps(ledger.to_value()).decode()
            same = (row.memory, row.epoch) == (batch.memory, epoch)
            if not same and ledger.waiting and not carried[ledger.stream]:
                continue  # which of those that wait are here already is only seen when they come
            if not same:
                _begin(row, ledger, before, Memory(batch.memory, epoch), waited=carried[ledger.stream])
            found = _went_back(ledger, before if same else None) or fault(
                ledger,
                stored=row.stored + row.offset,
                merged=row.merged - row.merged_before,
                carried=carried[ledger.stream],
            )
            if found and found != row.fault:
                faults.append(found)
            row.fault = found
        return faults

    def write(self) -> None:
        """What changed."""
        upsert(self.session, LedgerRow, [vars(self.rows[key]) for key in sorted(self.changed)])

    def _row(self, device: str, stream: str) -> _Row:
        key = (device, stream)
        if key not in self.rows:
            if sum(owner == device for owner, _ in self.rows) >= MAX_STREAMS:
                raise Malformed(
                    f"telemetry of {device}: the stream {stream} is one more than the {MAX_STREAMS} that it may have"
                )
            self.rows[key] = _Row(device, stream)
        self.changed.add(key)
        return self.rows[key]


def _begin(row: _Row, ledger: StreamLedger, before: Mapping[str, Any] | None, new: Memory, *, waited: int) -> None:
    """Another memory counts, or this fleet came back from a backup. `waited` of the stored are not acknowledged yet."""
    if row.memory and row.memory != new.name and before is not None:
        row.lost += before["waiting"]
    row.offset = ledger.delivered - (row.stored - waited)
    row.merged_before = row.merged
    row.memory, row.epoch = new.name, new.epoch


def _went_back(ledger: StreamLedger, before: Mapping[str, Any] | None) -> str:
    if before is None or ledger.produced >= before["produced"]:
        return ""
    return f"{ledger.stream}: {ledger.produced} records were made, and {before['produced']} before"


def view(session: Session, device: str) -> list[dict[str, Any]]:
    """The ledgers of a device as the API shows them."""
    rows = session.exec(select(LedgerRow).where(LedgerRow.device == device).order_by(col(LedgerRow.stream)))
    return [shown(row) for row in rows]


def shown(row: LedgerRow) -> dict[str, Any]:
    """The ledger of a stream as the API shows it: `stored` here, `lost` with earlier memories, `fault` in words."""
    return {
        **json.loads(row.document or StreamLedger(stream=row.stream).to_bytes()),
        "stored": row.stored,
        "lost": row.lost,
        "fault": row.fault,
    }
