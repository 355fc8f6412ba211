"""What people look at: how the models of one device do over time, and how one version of a model does by profile.

    device_page(session, "kitchen-1", Span(since, until, step))
    model_page(session, {"raspberry-pi-4": "sha256:..."}, Span(since, until, step))

A page of a device reads the windows of that device, one of a model those that were added up over all devices as they
came, and for its figures those of a few devices (`fleet.evidence.quality`): neither grows with the fleet. Steps are at
least as wide as the windows that are kept of that time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from fleet.errors import Malformed
from fleet.evidence.packing import sketch_of
from fleet.evidence.quality import DRAWN, quality
from fleet.evidence.rows import HEALTH, MODELS
from fleet.evidence.windows import FINE, NUMBERS, SPANS, HealthSum, Window, begin
from fleet.intervals import wilson
from fleet.store.evidence_tables import EvidenceSubject, GoldenRow
from wire.sketch import BINS
from wire.units import show_instant

MOST_STEPS: Final = 1000
STEPS: Final = (FINE, 3600, 6 * 3600, 86_400, 7 * 86_400)
"""Widths of a step that are chosen from, in seconds, when none is asked for: at most `SHOWN` of them."""
SHOWN: Final = 100


@dataclass(frozen=True)
class Span:
    """From `since` on and before `until`, in steps of `step` seconds; all in seconds since 1970."""

    since: int
    until: int
    step: int

    @classmethod
    def of(cls, since: datetime, until: datetime, step: float | None) -> Span:
        """Raises `Malformed` for an end before the begin, and for too many steps."""
        first, last = int(since.timestamp()), int(until.timestamp())
        if last <= first:
            raise Malformed("until: expected a time after since")
        width = int(step) if step else next((one for one in STEPS if last - first <= SHOWN * one), STEPS[-1])
        if width < FINE or (last - first) / width > MOST_STEPS:
            raise Malformed(f"step: expected at least {FINE} s, and at most {MOST_STEPS} steps: choose a wider one")
        return cls(begin(first, width), last, width)


@dataclass
class Series:
    """A subject's windows by step."""

    subject: EvidenceSubject
    steps: dict[int, Window] = field(default_factory=dict)

    def add(self, step: int, window: Window) -> None:
        """Count one more."""
        if step in self.steps:
            self.steps[step].merge(window)
        else:
            self.steps[step] = window

    @cached_property
    def total(self) -> Window:
        """All steps together."""
        total = Window()
        for window in self.steps.values():
            total.merge(window)
        return total


def device_page(session: Session, device: str, span: Span) -> dict[str, Any]:
    """Its models by digest, those that answered last first, and its health."""
    s = EvidenceSubject
    subjects = session.execute(select(s).where(col(s.device) == device, col(s.newest) >= span.since - SPANS[-1]))
    rows = list(subjects.scalars())
    series = _series(session, [row for row in rows if row.digest], span)
    g = GoldenRow
    golden = {row.digest: row for row in session.execute(select(g).where(col(g.device) == device)).scalars()}
    shown = []
    for one in sorted(series, key=lambda one: -one.total.ends):
        run = golden.get(one.subject.digest)
        held = {"held": run.held, "at": run.at} if run and not one.subject.shadow else None
        shown.append({**_named(one), "golden": held, **_told(one.total), "series": _by_step(one)})
    health = [row.id for row in rows if not row.digest and row.id is not None]
    return {"device": device, **_of(span), "models": shown, "health": _health(session, health, span)}


def model_page(session: Session, digests: Mapping[str, str], span: Span) -> dict[str, Any]:
    """How the variants of a version do, by profile; `digests` are those of their manifests. Shadow is apart."""
    s = EvidenceSubject
    found = session.execute(select(s).where(col(s.digest).in_(digests.values()), col(s.device) == "")).scalars()
    wanted = set(digests.items())
    series = _series(session, [row for row in found if (row.profile, row.digest) in wanted], span)
    devices = _devices(session, digests.values(), span)
    shown, drawn = [], DRAWN // max(1, len(series))
    for one in sorted(series, key=lambda one: (one.subject.profile, one.subject.shadow)):
        count = devices.get((one.subject.digest, one.subject.profile, one.subject.shadow), 0)
        figures = quality(session, one.subject, one.total, span.since, span.until, devices=drawn)
        told = {**_told(one.total), "figures": figures}
        shown.append({**_named(one), "devices": count, **told, "series": _by_step(one)})
    return {**_of(span), "profiles": shown}


def in_use(session: Session, digests: Iterable[str], span: Span) -> dict[str, tuple[Window, int]]:
    """What models did where they answered, over all devices, by digest; and how many devices that was."""
    s, wanted = EvidenceSubject, list(digests)
    subjects = session.execute(
        select(s).where(col(s.device) == "", col(s.digest).in_(wanted), ~col(s.shadow))
    ).scalars()
    counts = Counter[str]()
    for (digest, _, shadow), devices in _devices(session, wanted, span).items():
        counts[digest] += 0 if shadow else devices
    found: dict[str, tuple[Window, int]] = {}
    for one in _series(session, subjects, span):
        total, _ = found.setdefault(one.subject.digest, (Window(), counts[one.subject.digest]))
        total.merge(one.total)
    return found


def _series(session: Session, subjects: Iterable[EvidenceSubject], span: Span) -> list[Series]:
    by_number = {row.id: Series(row) for row in subjects if row.id is not None}
    for width in SPANS:
        for number, begins, window in MODELS.read(session, by_number, width, span.since, span.until):
            by_number[number].add(begin(begins, span.step), window)
    return [one for one in by_number.values() if one.steps]


def _devices(session: Session, digests: Iterable[str], span: Span) -> dict[tuple[str, str, bool], int]:
    """How many devices said something of a model since the begin."""
    s = EvidenceSubject
    of = (col(s.digest), col(s.profile), col(s.shadow))
    where = (col(s.digest).in_(list(digests)), col(s.device) != "", col(s.newest) >= span.since)
    rows = session.connection().execute(select(*of, func.count()).where(*where).group_by(*of))
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def _health(session: Session, subjects: list[int], span: Span) -> list[dict[str, Any]]:
    steps: dict[int, HealthSum] = {}
    for width in SPANS:
        for _, begins, one in HEALTH.read(session, subjects, width, span.since, span.until):
            steps.setdefault(begin(begins, span.step), HealthSum()).merge(one)
    return [
        {
            "at": _time(at),
            "memory": one.memory,
            "temperature_c": one.temperature,
            "cpu_percent": round(one.cpu_sum / 100 / one.samples, 1) if one.samples else None,
            "restarts": one.restarts,
        }
        for at, one in sorted(steps.items())
    ]


def _of(span: Span) -> dict[str, Any]:
    return {"since": _time(span.since), "until": _time(span.until), "step_s": span.step}


def _named(one: Series) -> dict[str, Any]:
    row = one.subject
    return {"model": row.model, "digest": row.digest, "profile": row.profile, "shadow": row.shadow}


def _by_step(one: Series) -> list[dict[str, Any]]:
    return [{"at": _time(at), **_numbers(window)} for at, window in sorted(one.steps.items())]


def _told(window: Window) -> dict[str, Any]:
    """All that is known of a stretch of time."""
    lengths = sketch_of(window.lengths)
    return {
        **_numbers(window),
        "confidence": window.confidence if any(window.confidence) else None,
        "labels": dict(sorted(window.labels.items(), key=lambda pair: -pair[1])),
        "languages": dict(sorted(window.languages.items(), key=lambda pair: -pair[1])),
        "length_p50": lengths.quantile(0.5),
        "length_p99": lengths.quantile(0.99),
        "newest": _time(window.ends),
    }


def _numbers(window: Window) -> dict[str, Any]:
    numbers = dict(zip(NUMBERS, window.numbers, strict=True))
    latency = sketch_of(window.latency)
    sure = sum(window.confidence)
    mean = sum((i + 0.5) / BINS * n for i, n in enumerate(window.confidence)) / sure if sure else None
    return {
        **numbers,
        "errors_percent": round(100 * numbers["errors"] / numbers["requests"], 3) if numbers["requests"] else None,
        "p50_ms": latency.quantile(0.5),
        "p99_ms": latency.quantile(0.99),
        "confidence_mean": mean,
        "accuracy": share(numbers["feedback_correct"], numbers["feedback_total"]),
        "agreement": share(numbers["agreed"], numbers["compared"]),
    }


def share(right: int, of: int) -> dict[str, float] | None:
    """A share with its interval of 95 %, by Wilson's score (1927); None of nothing.

    `right` may be a lie above `of`: it counts as all of them then.
    """
    if of <= 0:
        return None
    p = min(right, of) / of
    low, high = wilson(p, of)
    return {"value": p, "low": low, "high": high, "n": of}


def _time(seconds: float) -> str:
    return show_instant(datetime.fromtimestamp(seconds, UTC))
