"""Telemetry: a signed batch is stored once whatever happens on the way, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlmodel import Session, col, func, select

from fleet import agreements
from fleet.devices import record_refusal
from fleet.errors import Malformed, Untrusted
from fleet.ledgers import hold_against, note_stored, stream_of
from fleet.reports import check_batch
from fleet.store.tables import Device, DeviceStats, TelemetryRow
from wire.document import dump_json
from wire.messages import InferenceStats, TelemetryBatch, TelemetryRecord
from wire.sketch import Sketch
from wire.units import show_instant

LEDGER = "ledger"
"""Subject of the security event for a ledger that does not balance."""
MOST = 1 << 40
"""Largest number of anything in one record."""
FULL = 1 << 62
"""Where sums stop rising: the lies of one device must not overflow the database, or what reads all devices from it."""


def store(session: Session, device: Device, batch: TelemetryBatch, now: datetime, epoch: int) -> None:
    """Store what is new of a verified batch, count what is not.

    Raises `Malformed` for a batch with a number that cannot be, `Untrusted` for a recorded one that somebody sends
    again, and for two different ones of one number.
    """
    _check(batch)
    coming = check_batch((device.batch_starts, device.batch_sent), batch)
    known = _known(session, device.id, batch)
    fresh = [r for r in batch.records if r.seq not in known]
    if coming == "repeat":
        _check_repeated(batch, fresh)
        return
    device.batch_starts, device.batch_sent = batch.number
    session.add(device)
    for record in fresh:
        session.add(_row(device.id, batch.boot, record, show_instant(now)))
    _add_up(session.get_one(DeviceStats, device.id), fresh, duplicates=len(known))
    for record in fresh:
        agreements.add(session, device.id, record.inference)
    note_stored(session, device.id, fresh)
    for fault in hold_against(session, device.id, batch, epoch):
        record_refusal(session, device.id, LEDGER, fault, now)


def _row(device: str, boot: str, record: TelemetryRecord, received: str) -> TelemetryRow:
    return TelemetryRow(
        device=device,
        boot=boot,
        stream=stream_of(record),
        first=record.begin,
        seq=record.seq,
        received=received,
        record=record.to_bytes().decode(),
    )


def _check_repeated(batch: TelemetryBatch, fresh: Sequence[TelemetryRecord]) -> None:
    """What MQTT delivers twice holds nothing new. To acknowledge something new unstored would lose it."""
    if fresh:
        raise Untrusted(
            f"telemetry {batch.starts}.{batch.sent} of {batch.device}: another batch of this number came before: "
            "two machines use this identity: revoke the device and enrol it anew"
        )


def _check(batch: TelemetryBatch) -> None:
    for record in batch.records:
        counts = [n for i in record.inference for n in _counts(i)]
        if max(record.seq, *counts, 0) > MOST:
            raise Malformed(f"telemetry {record.seq} of {batch.device}: a count is over {MOST}")
    ends: dict[str, int] = {}
    for record in batch.records:
        stream = stream_of(record)
        if record.begin <= ends.get(stream, 0):
            raise Malformed(f"telemetry {record.seq} of {batch.device}: it overlaps {ends[stream]} of {stream}")
        ends[stream] = record.seq


def _counts(stats: InferenceStats) -> tuple[int, ...]:
    feedback = (stats.feedback_total, stats.feedback_correct)
    checks = (n for one in stats.agreement for n in (one.answers, one.checked, one.agreed, one.labelled))
    beside = (stats.compared, stats.agreed)
    return (stats.requests, stats.errors, *feedback, *beside, *checks, *stats.latency_ms.buckets.values())


def _known(session: Session, device: str, batch: TelemetryBatch) -> set[int]:
    """Those of a batch that were stored before, or overlap what was: to count one twice would be worse than to lose it.

    An agent never merges what it may have sent, so none overlaps in part unless two memories count as one.
    """
    of_boot = (TelemetryRow.device == device, TelemetryRow.boot == batch.boot)
    newest = session.exec(select(func.max(col(TelemetryRow.seq))).where(*of_boot)).one()
    if newest is None or newest < min(record.begin for record in batch.records):
        return set()
    return {record.seq for record in batch.records if _is_known(session, of_boot, record)}


def _is_known(session: Session, of_boot: tuple[bool, bool], record: TelemetryRecord) -> bool:
    """Reads two rows at most, whatever a device says that its record stands for: those of a stream do not overlap."""
    if session.exec(select(TelemetryRow.id).where(*of_boot, TelemetryRow.seq == record.seq)).first() is not None:
        return True
    following = (
        select(TelemetryRow.first)
        .where(*of_boot, TelemetryRow.stream == stream_of(record), TelemetryRow.seq >= record.begin)
        .order_by(col(TelemetryRow.seq))
        .limit(1)
    )
    first = session.exec(following).first()
    return first is not None and first <= record.seq


def _add_up(stats: DeviceStats, records: Iterable[TelemetryRecord], *, duplicates: int) -> None:
    latency = Sketch.from_value(json.loads(stats.latency))
    stats.duplicates += duplicates
    for record in records:
        stats.records += 1
        if record.health is not None:
            stats.health = record.health.to_bytes().decode()
        for inference in (one for one in record.inference if not one.shadow):  # what answered nobody is no request
            _add_inference(stats, inference)
            latency = latency.merge(inference.latency_ms)
    stopped = Sketch(buckets={key: min(n, FULL) for key, n in latency.buckets.items()})
    stats.latency = dump_json(stopped.to_value()).decode()


def _add_inference(stats: DeviceStats, inference: InferenceStats) -> None:
    for name in ("requests", "errors", "feedback_total", "feedback_correct"):
        setattr(stats, name, min(getattr(stats, name) + getattr(inference, name), FULL))
