"""Windows of time: what a model did, or how a device was, added up. Pure.

    window = Window.of(stats, ends)
    window.merge(other)                       # associative and commutative: records may come in any order
    span, begins = place(started, now, kept)  # which window a record belongs to

A window of `FINE` seconds becomes part of an hour when it is some hours old, and an hour part of a day after two weeks
(`Kept`): whatever the span, a record is counted in exactly one window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import orjson

from fleet.evidence.packing import MOST, Buckets, buckets_of, pack, unpack
from wire.agreement import COUNTS as CHECKED
from wire.messages import Health, InferenceStats
from wire.sketch import BINS

FULL: Final = (1 << 62) - 1
"""Where a sum stops rising: it must fit in the database's 64 bits."""
FINE: Final = 600
HOUR: Final = 3600
DAY: Final = 86_400
SPANS: Final = (FINE, HOUR, DAY)
AHEAD: Final = 300
"""Seconds by which a device's clock may be ahead; what is dated later counts as of now."""
MOST_NAMES: Final = 1000
"""Labels of one window; further ones count as "": a liar makes them up."""
UNASKED: Final = ("crash", "watchdog", "power")
"""Causes of restarts that nobody asked for (`wire.messages.Health`)."""
NUMBERS: Final = ("requests", "errors", "feedback_total", "feedback_correct", "compared", "agreed")


@dataclass(frozen=True)
class Kept:
    """How long windows of each span are kept, in seconds, counted from their begin."""

    fine: float = 2 * HOUR
    hours: float = 14 * DAY
    days: float = 400 * DAY


def place(started: float, now: float, kept: Kept) -> tuple[int, int] | None:
    """Span and begin of the window of a record; None for one so old that none is kept."""
    at = now if started > now + AHEAD else started
    age = now - at
    if age > kept.days:
        return None
    span = FINE if age <= kept.fine else HOUR if age <= kept.hours else DAY
    return span, begin(at, span)


def begin(at: float, span: int) -> int:
    """The begin of the window of a moment."""
    return int(at // span) * span


@dataclass
class Window:
    """What a model did. Counts, `latency` and `lengths` by bucket, `confidence` by bin, the rest by name.

    `checks` are those of `wire.agreement` by `stratum.count`. `ends` in seconds since 1970.
    """

    ends: int = 0
    numbers: list[int] = field(default_factory=lambda: [0] * len(NUMBERS))
    latency: Buckets = field(default_factory=dict)
    lengths: Buckets = field(default_factory=dict)
    confidence: list[int] = field(default_factory=lambda: [0] * BINS)
    labels: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    checks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stats: InferenceStats, ends: int) -> Self:
        """The window of one record."""
        return cls(
            ends=ends,
            numbers=[getattr(stats, name) for name in NUMBERS],
            latency=buckets_of(stats.latency_ms),
            lengths=buckets_of(stats.lengths),
            confidence=list(stats.confidence.bins),
            labels=dict(stats.labels),
            languages=dict(stats.languages),
            checks=_checks(stats),
        )

    def merge(self, other: Window) -> None:
        """Add what another one holds."""
        self.ends = max(self.ends, other.ends)
        self.numbers = _added(self.numbers, other.numbers)
        if any(other.confidence):  # told once an hour
            self.confidence = _added(self.confidence, other.confidence)
        for mine, its in ((self.latency, other.latency), (self.lengths, other.lengths)):
            for number, n in its.items():
                mine[number] = min(mine.get(number, 0) + n, MOST)
        for named, those in (
            (self.labels, other.labels),
            (self.languages, other.languages),
            (self.checks, other.checks),
        ):
            _add_names(named, those)

    def columns(self) -> dict[str, Any]:
        """As `fleet.store.evidence_tables.EvidenceWindow` holds it."""
        detail: dict[str, Any] = {
            "confidence": self.confidence if any(self.confidence) else None,
            "lengths": self.lengths and {str(number): n for number, n in self.lengths.items()},
            "labels": self.labels,
            "languages": self.languages,
            "checks": self.checks,
        }
        return {
            "ends": self.ends,
            **dict(zip(NUMBERS, self.numbers, strict=True)),
            "latency": pack(self.latency),
            "detail": orjson.dumps({name: value for name, value in detail.items() if value}),
        }

    @classmethod
    def from_columns(cls, ends: int, numbers: list[int], latency: bytes, detail: bytes) -> Self:
        """The inverse of `columns`."""
        value: Mapping[str, Any] = orjson.loads(detail) if detail else {}
        window = cls(ends=ends, numbers=numbers, latency=unpack(latency))
        if "lengths" in value:
            window.lengths = {int(number): n for number, n in value["lengths"].items()}
        if "confidence" in value:
            window.confidence = value["confidence"]
        window.labels = value.get("labels", {})
        window.languages = value.get("languages", {})
        window.checks = value.get("checks", {})
        return window


@dataclass
class HealthSum:
    """How a device was: as `fleet.store.evidence_tables.HealthWindow`. `cpu_sum` in hundredths of a percent."""

    ends: int = 0
    samples: int = 0
    memory: int = 0
    temperature: float | None = None
    cpu_sum: int = 0
    restarts: int = 0

    @classmethod
    def of(cls, health: Health, ends: int, restarts: int) -> Self:
        """The window of one record. `restarts`: those since the record before."""
        return cls(
            ends=ends,
            samples=1,
            memory=max(0, min(health.agent_memory, FULL)),
            temperature=health.temperature_c,
            cpu_sum=round(100 * min(max(health.cpu_percent, 0.0), 100.0)),
            restarts=restarts,
        )

    def merge(self, other: HealthSum) -> None:
        """Add what another one holds."""
        self.ends = max(self.ends, other.ends)
        self.samples += other.samples
        self.memory = max(self.memory, other.memory)
        temperatures = [t for t in (self.temperature, other.temperature) if t is not None]
        self.temperature = max(temperatures, default=None)
        self.cpu_sum = min(self.cpu_sum + other.cpu_sum, FULL)
        self.restarts = min(self.restarts + other.restarts, FULL)

    def columns(self) -> dict[str, Any]:
        """As the table holds it."""
        return vars(self)


def unasked(health: Health) -> int | None:
    """How often the agent was restarted without being asked, since its enrolment; None: it does not say."""
    if not health.restarts:
        return None
    return min(sum(max(0, health.restarts.get(cause, 0)) for cause in UNASKED), FULL)


def _checks(stats: InferenceStats) -> dict[str, int]:
    found: Counter[str] = Counter()
    for one in stats.agreement:
        for name in CHECKED:
            found[f"{one.stratum}.{name}"] += getattr(one, name)
    return dict(+found)


def _added(a: list[int], b: list[int]) -> list[int]:
    return [min(x + y, FULL) for x, y in zip(a, b, strict=True)]


def _add_names(mine: dict[str, int], its: Mapping[str, int]) -> None:
    for name, n in its.items():
        key = name if name in mine or len(mine) < MOST_NAMES else ""
        mine[key] = min(mine.get(key, 0) + n, FULL)
