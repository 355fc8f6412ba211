"""Comparisons for the gates, made by hand: equal devices, each a little different, and what is asked to be otherwise.

candidates(12, slower=1.2) + controls(100)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from fleet.gates.values import Arm, Behaviour, Comparison
from wire.sketch import Sketch

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SINCE = NOW - timedelta(hours=3)
REQUESTS, LABELS = 2100, 2200


@lru_cache(maxsize=1024)
def times(level: float, slow: float = 0.0, n: int = REQUESTS) -> Sketch:
    """Latencies around `level` milliseconds, a share `slow` of them five times as long."""
    return Sketch.of(level * (0.6 + 0.8 * i / n) * (5 if i % 1000 < 1000 * slow else 1) for i in range(n))


def behaviour(number: int, begins: datetime, ends: datetime, **other: Any) -> Behaviour:
    """A device that is like the others but for its number; `slower`, `tail` and any field may be otherwise."""
    level = 20 * (1 + 0.002 * (number % 17)) * other.pop("slower", 1.0)
    return Behaviour(**{
        "digest": "a", "begins": begins, "ends": ends, "requests": REQUESTS, "errors": 10 + number % 3,
        "latency_ms": times(level, other.pop("tail", 0.0)), "feedback_total": LABELS,
        "feedback_correct": 2000 + number % 7, "memory": 60_000_000 + 1000 * (number % 100),
        "temperature_c": 50 + 0.01 * (number % 100), "golden": True, **other,
    })  # fmt: skip


def device(number: int, arm: Arm, *, first: bool = False, **other: Any) -> Comparison:
    """One device; `other` is what it does since, and `was` what it did before."""
    was = other.pop("was", {})
    before = None if first else behaviour(number, SINCE - timedelta(days=1), SINCE, **was)
    after = behaviour(number + 3, SINCE, other.pop("ends", NOW), **other)
    return Comparison(
        device=f"{arm}-{number}", profile="pi", arm=arm, since=SINCE, before=before, after=after, incumbent=not first
    )


def candidates(n: int, **other: Any) -> list[Comparison]:
    return [device(i, "candidate", **other) for i in range(n)]


def controls(n: int, **other: Any) -> list[Comparison]:
    return [device(1000 + i, "control", **other) for i in range(n)]
