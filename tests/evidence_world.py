"""Devices that send telemetry to a database of their own, at a time that a test sets: for tests of evidence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func
from sqlmodel import select

from fleet import telemetry
from fleet.evidence.comparing import comparisons
from fleet.evidence.keeping import Keeper
from fleet.evidence.recording import Recorder
from fleet.gates.values import Comparison
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow
from fleet.store.tables import Device, DeviceStats
from wire.messages import Health, InferenceStats, TelemetryBatch, TelemetryRecord
from wire.sketch import Sketch
from wire.units import show_instant

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
MINUTE = timedelta(minutes=1)


@dataclass
class World:
    """Devices that send what a test makes them say, at a time that a test sets."""

    database: Database
    now: datetime = NOON
    recorder: Recorder = field(default_factory=Recorder)
    seqs: Counter[str] = field(default_factory=Counter)

    def add(self, *devices: str, profile: str = "pi") -> None:
        with self.database.transaction() as session:
            for name in devices:
                session.add(Device(id=name, profile=profile, created="", token_hash="", token_expires=""))
            session.flush()
            session.add_all(DeviceStats(device=name) for name in devices)

    def say(self, device: str, start: datetime, *stats: InferenceStats, health: Health | None = None) -> None:
        """One record of a minute."""
        self.seqs[device] += 1
        seq = self.seqs[device]
        record = TelemetryRecord(
            seq=seq,
            start=show_instant(start),
            end=show_instant(start + MINUTE),
            stream="inference",
            inference=stats,
            health=health,
        )
        batch = TelemetryBatch(device=device, boot="b", starts=1, sent=seq, nonce="n", records=(record,))
        with self.database.transaction() as session:
            intake = telemetry.Intake(session, self.recorder, self.now)
            intake.take(session.get_one(Device, device), batch, 1)
            intake.store()

    def keep(self, hours: float = 0) -> None:
        """Let time pass, and have all done that is due."""
        self.now += timedelta(hours=hours)
        keeper = Keeper(self.database, self.recorder, timedelta(hours=1), timedelta(days=90), lambda: self.now)
        for _ in range(40):
            keeper.tick()

    def compare(self, since: datetime, *candidates: str, controls: tuple[str, ...] = ()) -> dict[str, Comparison]:
        with self.database.transaction() as session:
            found = comparisons(
                session,
                profile="pi",
                model="kitchen",
                candidate_digest=NEW,
                candidates=dict.fromkeys(candidates, since),
                controls=dict.fromkeys(controls, since),
                before=timedelta(days=1),
            )
        return {one.device: one for one in found}

    def spans(self) -> dict[int, int]:
        """How many windows of devices there are of each span."""
        query = (
            select(EvidenceWindow.span, func.count())
            .join(EvidenceSubject, EvidenceSubject.id == EvidenceWindow.subject)
            .where(EvidenceSubject.device != "")
            .group_by(EvidenceWindow.span)
        )
        with self.database.transaction() as session:
            return dict(session.exec(query).all())

    def all(self, table: Any) -> list[Any]:
        with self.database.transaction() as session:
            return list(session.exec(select(table)).all())


def stats(digest: str = OLD, requests: int = 10, **more: Any) -> InferenceStats:
    latency = Sketch.of([20.0] * requests)
    return InferenceStats(model="kitchen", digest=digest, requests=requests, errors=1, latency_ms=latency, **more)


def health(memory: int = 100, temperature: float | None = 40.0, **restarts: int) -> Health:
    return Health(
        cpu_percent=10,
        memory_used=1,
        memory_total=2,
        agent_memory=memory,
        disk_free=1,
        disk_total=2,
        temperature_c=temperature,
        restarts=restarts,
    )
