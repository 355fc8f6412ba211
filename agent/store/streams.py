"""The streams of telemetry, and what gives way in each when the queue is full. Pure.

event        keep       an alarm is dropped when there is no sample left to drop
inference    merge      two old windows become one: their counts add up, only the time between them is lost
health       thin       every second one of the older samples goes; expires after 30 days
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Final, Literal

from wire.agreement import merge
from wire.messages import InferenceStats, TelemetryRecord

EVENT: Final = "event"
INFERENCE: Final = "inference"
HEALTH: Final = "health"

BATCH_BYTES: Final = 40 * 1024
"""Records in one batch: with base64 and a signature it stays below 64 KiB on the wire."""
LARGEST_MERGED: Final = BATCH_BYTES // 2
"""Bytes of a record that others were merged into; two windows of many different labels may not fit, and stay two."""


@dataclass(frozen=True)
class Rule:
    """What gives way when the queue is full, and how long a record is worth its place."""

    over: Literal["keep", "merge", "thin"]
    lasts: timedelta | None = None


RULES: Final[Mapping[str, Rule]] = {
    EVENT: Rule("keep"),
    INFERENCE: Rule("merge"),
    HEALTH: Rule("thin", lasts=timedelta(days=30)),
}
SAMPLES: Final = tuple(stream for stream, rule in RULES.items() if rule.over != "keep")


@dataclass(frozen=True)
class Row:
    """A record in the queue, without its content. `merged`: how many others went into it."""

    id: int
    boot: str
    merged: int
    size: int


def pairs_to_merge(rows: Sequence[Row], most: int) -> list[tuple[Row, Row]]:
    """Up to `most` pairs of neighbours of one boot, those that stand for the fewest records first, none of them twice.

    `rows` are by age, and old enough to lose the time between two of them.
    """
    near = [
        (a.merged + b.merged, a.id, a, b)
        for a, b in pairwise(rows)
        if a.boot == b.boot and a.size + b.size <= LARGEST_MERGED
    ]
    chosen: list[tuple[Row, Row]] = []
    taken: set[int] = set()
    for _, _, a, b in sorted(near, key=lambda pair: pair[:2]):
        if len(chosen) == most:
            break
        if taken.isdisjoint((a.id, b.id)):
            taken |= {a.id, b.id}
            chosen.append((a, b))
    return chosen


def to_thin_out(rows: Sequence[Row]) -> list[Row]:
    """Every second one."""
    return list(rows[1::2])


def merged_record(earlier: TelemetryRecord, later: TelemetryRecord) -> TelemetryRecord:
    """One record that stands for both, of the same boot and stream."""
    return replace(
        later,
        start=earlier.start,
        first=earlier.begin,
        merged=earlier.merged + later.merged + 1,
        inference=_merged_stats((*earlier.inference, *later.inference)),
        health=later.health or earlier.health,
        events=(*earlier.events, *later.events),
    )


def _merged_stats(stats: Iterable[InferenceStats]) -> tuple[InferenceStats, ...]:
    found: dict[tuple[str, str, bool], InferenceStats] = {}
    for one in stats:
        key = one.model, one.digest, one.shadow
        found[key] = added(found[key], one) if key in found else one
    return tuple(found[key] for key in sorted(found))


def added(a: InferenceStats, b: InferenceStats) -> InferenceStats:
    """What one model did in two stretches of time, both times as the one that answers, or in shadow."""
    return replace(
        a,
        requests=a.requests + b.requests,
        errors=a.errors + b.errors,
        latency_ms=a.latency_ms.merge(b.latency_ms),
        confidence=a.confidence.merge(b.confidence),
        labels={label: a.labels.get(label, 0) + b.labels.get(label, 0) for label in {**a.labels, **b.labels}},
        feedback_total=a.feedback_total + b.feedback_total,
        feedback_correct=a.feedback_correct + b.feedback_correct,
        agreement=merge((*a.agreement, *b.agreement)),
        routes=dict(Counter(a.routes) + Counter(b.routes)),
        lengths=a.lengths.merge(b.lengths),
        languages=dict(Counter(a.languages) + Counter(b.languages)),
        compared=a.compared + b.compared,
        agreed=a.agreed + b.agreed,
    )
