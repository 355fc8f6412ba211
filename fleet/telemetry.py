"""Telemetry: a signed batch is stored once whatever happens on the way, and counted.

    intake = Intake(session, recorder, now)
    intake.take(device, batch, epoch)    # for each batch of a transaction, verified
    intake.store()                       # everything that they need is read at once, and written at once

A record is a row for some hours, and counts for ever: in the sums of its device, in windows of evidence, in what was
seen and in the ledger, all in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import bindparam, select, tuple_
from sqlmodel import Session, col

from fleet import agreements, routed
from fleet.devices import record_refusal
from fleet.drift import windows
from fleet.errors import Malformed, Untrusted
from fleet.evidence.recording import Recorder, note_golden
from fleet.ledgers import Ledgers, stream_of
from fleet.reports import check_batch
from fleet.seen import Seen
from fleet.store.evidence_tables import SeenRow
from fleet.store.speakers import Speaker
from fleet.store.tables import Device, DeviceStats, TelemetryRow
from fleet.store.upsert import append, upsert
from wire.messages import InferenceStats, TelemetryBatch, TelemetryRecord
from wire.units import instant, show_instant

LEDGER = "ledger"
"""Subject of the security event for a ledger that does not balance."""
MOST = 1 << 40
"""Largest number of anything in one record."""
FULL = 1 << 62
"""Where sums stop rising: the lies of one device must not overflow the database, or what reads all devices from it."""
SUMS: Final = ("requests", "errors", "feedback_total", "feedback_correct")
_SEEN: Final = select(col(SeenRow.device), col(SeenRow.boot), col(SeenRow.streams)).where(
    tuple_(col(SeenRow.device), col(SeenRow.boot)).in_(bindparam("boots", expanding=True))
)
_SUMS: Final = select(
    *(
        col(getattr(DeviceStats, name))
        for name in ("device", "latency", "health", "inference_at", "health_at", "records", "duplicates", *SUMS)
    )
).where(col(DeviceStats.device).in_(bindparam("devices", expanding=True)))
Boot = tuple[str, str]
"""A device and a start of its agent."""


def store(session: Session, device: Device, batch: TelemetryBatch, now: datetime, epoch: int) -> None:
    """Store one batch: see `Intake`."""
    intake = Intake(session, Recorder(), now)
    intake.take(device, batch, epoch)
    intake.store()


class _Taken(NamedTuple):
    device: Device | Speaker
    batch: TelemetryBatch
    epoch: int
    again: bool
    """Whether MQTT delivered it before."""


@dataclass
class Intake:
    """The batches of one transaction."""

    session: Session
    recorder: Recorder
    now: datetime
    batches: list[_Taken] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)

    def take(self, device: Device | Speaker, batch: TelemetryBatch, epoch: int) -> None:
        """Note a verified batch, and its number on the device's row. `epoch`: the fleet's, for its ledger.

        Raises `Malformed` for a batch with a number that cannot be, `Untrusted` for a recorded one that is sent again.
        """
        _check(batch)
        again = check_batch((device.batch_starts, device.batch_sent), batch) == "repeat"
        device.batch_starts, device.batch_sent = batch.number
        self.batches.append(_Taken(device, batch, epoch, again))

    def store(self) -> None:
        """Store what is new of them, count what is not.

        Raises `Untrusted` for two different batches of one number, and `Malformed` for more streams than a device has.
        """
        if not self.batches:
            return
        self.session.flush()
        devices = sorted({one.device.id for one in self.batches})
        seen, sums = self._seen(), self._sums(devices)
        ledgers = Ledgers.of(self.session, devices)
        sheet = self.recorder.sheet(self.session, self.now)
        counted: dict[str, list[InferenceStats]] = {}
        looks: list[tuple[str, TelemetryRecord]] = []
        golden: dict[str, dict[str, bool]] = {}
        for device, batch, epoch, again in self.batches:
            fresh = self._fresh(seen[device.id, batch.boot], device, batch, again=again)
            if again:
                continue
            _add_up(sums[device.id], fresh, duplicates=len(batch.records) - len(fresh))
            _note_ages(device, sums[device.id], fresh, show_instant(self.now))
            for record in fresh:
                if any(one.agreement for one in record.inference):
                    agreements.add(self.session, device.id, record.inference)
                counted.setdefault(device.id, []).extend(record.inference)
                if record.health is not None and record.health.golden:
                    golden.setdefault(device.id, {}).update(record.health.golden)
                sheet.add(device.id, device.profile, record)
            looks.extend((device.id, record) for record in fresh)
            ledgers.note_stored(device.id, fresh)
            for fault in ledgers.hold_against(device.id, batch, epoch):
                record_refusal(self.session, device.id, LEDGER, fault, self.now)
        self._write(seen, sums)
        routed.add(self.session, counted)
        note_golden(self.session, golden, self.now)
        ledgers.write()
        sheet.write()
        windows.add(self.session, looks, self.now)

    def _fresh(
        self, seen: Seen, device: Device | Speaker, batch: TelemetryBatch, *, again: bool
    ) -> list[TelemetryRecord]:
        """What was not stored before, which counts as stored from now on.

        An agent never merges what it may have sent, so none overlaps in part unless two memories count as one: to count
        one twice would be worse than to lose it.
        """
        fresh = [r for r in batch.records if not seen.holds(stream_of(r), r.begin, r.seq)]
        if again and fresh:
            raise Untrusted(
                f"telemetry {batch.starts}.{batch.sent} of {batch.device}: another batch of this number came before: "
                "two machines use this identity: revoke the device and enrol it anew"
            )
        received = show_instant(self.now)
        for record in fresh:
            seen.add(stream_of(record), record.begin, record.seq)
            self.raw.append(
                {
                    "device": device.id,
                    "boot": batch.boot,
                    "stream": stream_of(record),
                    "first": record.begin,
                    "seq": record.seq,
                    "received": received,
                    "record": orjson.dumps(record.to_value()).decode(),
                }
            )
        return fresh

    def _seen(self) -> dict[Boot, Seen]:
        boots = {(one.device.id, one.batch.boot) for one in self.batches}
        found = {boot: Seen() for boot in boots}
        for device, boot, streams in self.session.connection().execute(_SEEN, {"boots": sorted(boots)}):
            found[device, boot] = Seen.from_text(streams)
        return found

    def _sums(self, devices: Sequence[str]) -> dict[str, Sums]:
        found = self.session.connection().execute(_SUMS, {"devices": devices})
        return {device: Sums.of(*values) for device, *values in found}

    def _write(self, seen: dict[Boot, Seen], sums: dict[str, Sums]) -> None:
        append(self.session, TelemetryRow, self.raw)
        day = int(self.now.timestamp() // 86_400)
        rows = [
            {"device": device, "boot": boot, "streams": one.to_text(), "day": day}
            for (device, boot), one in seen.items()
        ]
        upsert(self.session, SeenRow, rows)
        upsert(self.session, DeviceStats, [{"device": device, **one.columns()} for device, one in sums.items()])


@dataclass
class Sums:
    """A row of `DeviceStats` without its device, its latency by bucket."""

    latency: dict[str, int]
    health: str
    inference_at: str
    health_at: str
    records: int
    duplicates: int
    counts: dict[str, int]

    @classmethod
    def of(
        cls, latency: str, health: str, inference_at: str, health_at: str, records: int, duplicates: int, *counts: int
    ) -> Sums:
        """From the columns of a row."""
        buckets = orjson.loads(latency).get("buckets", {})
        return cls(buckets, health, inference_at, health_at, records, duplicates, dict(zip(SUMS, counts, strict=True)))

    def columns(self) -> dict[str, Any]:
        """As the table holds it."""
        return {
            "latency": orjson.dumps({"buckets": self.latency}).decode(),
            "health": self.health,
            "inference_at": self.inference_at,
            "health_at": self.health_at,
            "records": self.records,
            "duplicates": self.duplicates,
            **self.counts,
        }


def _check(batch: TelemetryBatch) -> None:
    ends: dict[str, int] = {}
    for record in batch.records:
        if record.seq > MOST or any(max(_counts(i)) > MOST for i in record.inference):
            raise Malformed(f"telemetry {record.seq} of {batch.device}: a count is over {MOST}")
        stream = stream_of(record)
        if record.begin <= ends.get(stream, 0):
            raise Malformed(f"telemetry {record.seq} of {batch.device}: it overlaps {ends[stream]} of {stream}")
        ends[stream] = record.seq


def _counts(stats: InferenceStats) -> list[int]:
    checks = [n for one in stats.agreement for n in (one.answers, one.checked, one.agreed, one.labelled)]
    named = (stats.latency_ms.buckets, stats.lengths.buckets, stats.labels, stats.languages, stats.routes)
    sketches = [n for those in named for n in those.values()]
    counts = [stats.requests, stats.errors, stats.feedback_total, stats.feedback_correct, stats.compared, stats.agreed]
    return [*counts, *stats.confidence.bins, *checks, *sketches]


def _add_up(sums: Sums, records: Sequence[TelemetryRecord], *, duplicates: int) -> None:
    sums.duplicates = min(sums.duplicates + duplicates, FULL)
    newest = next((record.health for record in reversed(records) if record.health is not None), None)
    if newest is not None:
        sums.health = orjson.dumps(newest.to_value()).decode()
    latency, counts = sums.latency, sums.counts
    for record in records:
        sums.records = min(sums.records + 1, FULL)
        for inference in (one for one in record.inference if not one.shadow):  # what answered nobody is no request
            for name in SUMS:
                counts[name] = min(counts[name] + getattr(inference, name), FULL)
            for bucket, n in inference.latency_ms.buckets.items():
                latency[bucket] = min(latency.get(bucket, 0) + n, FULL)


def _note_ages(device: Device | Speaker, sums: Sums, records: Sequence[TelemetryRecord], now: str) -> None:
    """Of when the newest figures are. A device's clock may be ahead: nothing is newer than when it came."""
    for record in records:
        at = min(show_instant(instant(record.end)), now)
        if any(inference.requests and not inference.shadow for inference in record.inference):
            sums.inference_at = max(sums.inference_at, at)
        if record.health is not None:
            sums.health_at = max(sums.health_at, at)
            device.interval_s = record.health.window_s or 0.0
