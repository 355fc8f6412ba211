"""Fleets that are only drawn, with the clock of the drawing: what their devices would tell of each day.

Devices differ for good (each household asks its own things), from day to day (what was asked once today is asked again
today), by the hour (the mix of the evening is not that of the morning) and at weekends, and some tell far more than
others. Without a change none of that is drift.

    world = World(Shape(devices=50), seed=1)
    world.live(100)                                  # days; what came of them is in world.opened
    world.change = Change("labels", 0.25)            # from here on
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from evidence_of import evidence
from sqlmodel import Session

from fleet.drift.drift import GRACE, Drift
from fleet.drift.looks import WINDOW, Look, window_of
from fleet.drift.views import open_alarms
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.drift_tables import DriftLook
from fleet.store.tables import Device, EvidenceRow
from wire.evidence import Reference
from wire.sketch import Histogram, Sketch

DIGEST = "sha256:" + "a" * 64
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)
LABELS = tuple(f"intent-{i}" for i in range(12))


@dataclass(frozen=True)
class Shape:
    """A fleet. `apart`: how much devices differ (0: not at all); `bursts`: how much one device's days do.

    `shared`: how much all devices' days differ together; `evening` and `weekend`: how much the mix does then.
    """

    devices: int = 50
    requests: float = 100.0
    apart: float = 0.4
    bursts: float = 0.2
    shared: float = 0.05
    evening: float = 0.8
    weekend: float = 0.15


@dataclass(frozen=True)
class Change:
    """From a day on, on the devices of a stratum. `size`: the share of requests that are another kind.

    `labels`: they ask for one rare thing; `confidence`: the model is unsure of them; `lengths`: they are three times as
    long; `languages`: they are in French.
    """

    kind: str
    size: float
    stratum: str = "all"


@dataclass
class World:
    """A fleet of one model in a database of its own. `opened`: alarms with the day on which they opened, from 0."""

    shape: Shape
    seed: int
    folder: Any
    change: Change | None = None
    reference: bool = True
    day: int = 0
    opened: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(self.seed)
        self.database = Database.in_folder(self.folder)
        self.serial = Serial()
        self.drift = Drift(self.database, self.serial, lambda: BEGAN, self._tags)
        self.names = [f"d{i:04}" for i in range(self.shape.devices)]
        draw, s = self.chance, self.shape
        self.base = np.log(np.arange(1, len(LABELS) + 1) ** -0.7)
        self.apart = draw.normal(0, s.apart, (s.devices, len(LABELS)))
        self.sure = 1.8 + draw.normal(0, s.apart / 2, s.devices)
        self.long = math.log(8) + draw.normal(0, s.apart / 4, s.devices)
        self.rate = s.requests * np.exp(draw.normal(0, 1.0, s.devices))
        self.french = np.clip(0.02 + draw.normal(0, 0.01, s.devices), 0, 1)
        self._seen: set[int] = set()
        with self.database.transaction() as session:
            for i, name in enumerate(self.names):
                group = f"g{i % 4}" if s.devices >= 20 else "default"
                session.add(
                    Device(id=name, profile="raspberry-pi-4", group=group, created="", token_hash="", token_expires="")
                )
            if self.reference:
                session.add(EvidenceRow(subject=DIGEST, digest=DIGEST, document=self._evidence()))

    def close(self) -> None:
        """Give the database back."""
        self.serial.close()
        self.database.close()

    def live(self, days: int) -> None:
        """So many days, each judged when it has ended."""
        for _ in range(days):
            self._tell()
            self.day += 1
            now = BEGAN + self.day * WINDOW + GRACE + timedelta(seconds=1)
            done = self.drift.catch_up(now)
            assert done == [window_of(BEGAN + (self.day - 1) * WINDOW)], "the window was not judged"
            self._note()

    def open_now(self) -> list[dict[str, Any]]:
        """The alarms that are open."""
        with self.database.transaction() as session:
            return open_alarms(session)

    def _note(self) -> None:
        for alarm in self.open_now():
            if alarm["id"] not in self._seen:
                self._seen.add(alarm["id"])
                self.opened.append((self.day - 1, alarm))

    def _tags(self, _session: Session, devices: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {name: ("kitchen",) if int(name[1:]) % 3 == 0 else () for name in devices}

    # --- what is asked and answered -------------------------------------------------------------------------------

    def _tell(self) -> None:
        window = window_of(BEGAN + self.day * WINDOW)
        with self.database.transaction() as session:
            for name, look in zip(self.names, self._looks(), strict=True):
                if look:
                    session.add(DriftLook(window=window, digest=DIGEST, device=name, model="kitchen", look=look.text()))

    def _looks(self) -> list[Look]:
        draw, s = self.chance, self.shape
        devices, hours = s.devices, 24
        clock = np.cos((np.arange(hours) - 19) / 24 * 2 * math.pi)
        evening = np.outer(clock, np.linspace(-1, 1, len(LABELS))) * s.evening
        weekend = (self.day % 7 >= 5) * s.weekend * np.linspace(1, -1, len(LABELS))[::-1]
        day = draw.normal(0, s.shared, len(LABELS)) + weekend
        own = self.base + self.apart + draw.normal(0, s.bursts, (devices, len(LABELS))) + day
        mix = np.exp(own[:, None, :] + evening[None])
        mix /= mix.sum(-1, keepdims=True)
        asked = draw.poisson(self.rate[:, None] * np.exp(clock) / 24 / 1.27)
        changed = self._changed()
        size = self.change.size if self.change else 0.0
        if self.change and self.change.kind == "labels":
            mix[changed] = mix[changed] * (1 - size) + size * np.eye(len(LABELS))[-1]
        labels = draw.multinomial(asked, mix).sum(1)
        today = draw.normal(0, s.bursts / 2, devices) + draw.normal(0, s.shared)
        return [self._look(i, labels[i], float(today[i]), changed=bool(changed[i])) for i in range(devices)]

    def _changed(self) -> Any:
        if self.change is None:
            return np.zeros(self.shape.devices, bool)
        dimension, _, name = self.change.stratum.partition(":")
        if dimension == "group":
            return np.array([f"g{i % 4}" == name for i in range(self.shape.devices)])
        if dimension == "tag":
            return np.array([i % 3 == 0 for i in range(self.shape.devices)])
        return np.ones(self.shape.devices, bool)

    def _look(self, i: int, labels: Any, today: float, *, changed: bool) -> Look:
        draw, n = self.chance, int(labels.sum())
        size = self.change.size if self.change is not None and changed else 0.0
        kind = self.change.kind if self.change is not None else ""
        other = draw.random(n) < size
        sure = 1 / (1 + np.exp(-draw.normal(self.sure[i] + today, 1.0, n)))
        if kind == "confidence":
            sure = np.where(other, sure * 0.6, sure)
        long = draw.normal(self.long[i] + today / 4, 0.4, n)
        if kind == "lengths":
            long = np.where(other, long + math.log(3), long)
        buckets = 5 * np.ceil(long / math.log(1.04) / 5).astype(int)
        french = draw.random(n) < self.french[i]
        if kind == "languages":
            french |= other
        languages = np.where(french, "fr", np.where(draw.random(n) < 0.15, "und", "en"))
        return Look(
            labels={name: int(c) for name, c in zip(LABELS, labels, strict=True) if c},
            confidence=_counted(np.minimum(19, (sure * 20).astype(int))),
            lengths=_counted(buckets),
            languages=_counted(languages),
        )

    def _evidence(self) -> str:
        """The reference: what a thousand examples of the whole population look like."""
        draw, s = self.chance, self.shape
        clock = np.cos((np.arange(24) - 19) / 24 * 2 * math.pi)
        evening = np.outer(clock, np.linspace(-1, 1, len(LABELS))) * s.evening
        many = self.base + draw.normal(0, math.hypot(s.apart, s.bursts), (2000, 1, len(LABELS))) + evening[None]
        mix = np.exp(many)
        mix = ((mix / mix.sum(-1, keepdims=True)) * np.exp(clock)[None, :, None]).sum((0, 1))
        n = 1000
        sure = 1 / (1 + np.exp(-draw.normal(1.8, math.hypot(1.0, s.apart / 2, s.bursts / 2), n)))
        long = draw.normal(math.log(8), math.hypot(0.4, s.apart / 4, s.bursts / 8), n)
        buckets = _counted(5 * np.ceil(long / math.log(1.04) / 5).astype(int))
        languages = dict(zip(("fr", "und", "en"), map(int, draw.multinomial(n, (0.02, 0.147, 0.833))), strict=True))
        reference = Reference(
            dataset=DIGEST,
            n=n,
            labels=dict(zip(LABELS, map(int, draw.multinomial(n, mix / mix.sum())), strict=True)),
            confidence=Histogram.of(sure.tolist()),
            lengths=Sketch(buckets=buckets),
            languages=languages,
        )
        return evidence(subject=DIGEST, reference=reference, attempts=()).to_bytes().decode()


def _counted(values: Any) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(n) for name, n in zip(names, counts, strict=True)}
