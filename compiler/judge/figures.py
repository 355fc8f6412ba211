"""What was measured, as the measurements of evidence: each with its interval, n, device and runtime. Pure.

Intervals are two-sided at the confidence of the build: Wilson's for fractions of right answers, the normal one for a
mean of numbers between, order statistics for percentiles of times.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, pstdev

from compiler.workshop.cache import processor
from wire.evidence import Decision, Kind, Measurement


@dataclass(frozen=True)
class Where:
    """On what figures were taken, with which runtime, and at which confidence their intervals stand."""

    kind: Kind
    device: str
    runtime: str
    confidence: float


def answers(
    decision: Decision, variant: Sequence[float], source: Sequence[float], where: Where
) -> tuple[Measurement, ...]:
    """How a variant answers: its value of the metric, the source's where examples have labels, and the drop."""
    metric = decision.metric
    found = [_mean(metric, variant, where)]
    if metric == "accuracy":
        found.append(_mean("source_accuracy", source, where))
    drop = Measurement(
        metric="drop",
        value=decision.drop,
        unit="points",
        n=decision.n,
        low=decision.low,
        high=decision.high,
        kind=where.kind,
        device=where.device,
        runtime=where.runtime,
    )
    return (*found, drop)


def sizes(*, model: int, footprint: int, source: int) -> tuple[Measurement, ...]:
    """Sizes in bytes: exact, and the same on any machine."""
    named = {"size": model, "footprint": footprint, "source_size": source}
    return tuple(
        Measurement(metric=metric, value=float(value), unit="byte", n=1, kind="measured")
        for metric, value in named.items()
    )


def calibrated(*, before: float, after: float, asked: float, n: int, where: Where) -> tuple[Measurement, ...]:
    """How far confidence is from the share of right answers, and the share of answers worth asking a larger model."""
    low, high = _wilson(asked, n, where.confidence)
    return (
        _share("calibration_error_before", before, n, where),
        _share("calibration_error", after, n, where),
        replace(_share("escalated", asked, n, where), low=low, high=high),
    )


def _share(metric: str, value: float, n: int, where: Where) -> Measurement:
    return Measurement(
        metric=metric,
        value=value,
        unit="fraction",
        n=n,
        kind=where.kind,
        device=where.device,
        runtime=where.runtime,
    )


def memory(grown: int, where: Where) -> Measurement:
    """Bytes by which a process grows with the model loaded."""
    return Measurement(
        metric="memory",
        value=float(grown),
        unit="byte",
        n=1,
        kind=where.kind,
        device=where.device,
        runtime=where.runtime,
    )


def speed(ms: Sequence[float], doubts: Sequence[str], where: Where) -> tuple[Measurement, ...]:
    """Latency in ms from example to answer. `doubts` in words go with the figures: other work ran, say."""
    told = {"doubts": list(doubts)} if doubts else {}
    return tuple(replace(_percentile(ms, p, where), extra=told) for p in (50, 99))


def percentile(values: Sequence[float], p: float) -> float:
    """The nearest-rank percentile: a value that was really seen."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


def this_machine() -> str:
    """What figures are taken on: board or processor, and its kind."""
    return f"{board() or processor() or 'unknown processor'} ({platform.machine()})"


def board() -> str:
    """The device-tree model of this machine, or "" where there is none."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").rstrip("\0")
    except OSError:
        return ""


def _mean(metric: str, values: Sequence[float], where: Where) -> Measurement:
    low, high = _interval(values, where.confidence)
    return replace(_share(metric, fmean(values), len(values), where), low=low, high=high)


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Wilson score interval (Wilson 1927) of a fraction: honest near 0 and 1, where the normal interval is not."""
    p, n, z = fmean(values), len(values), _z(confidence)
    if any(0 < v < 1 for v in values):
        half = z * pstdev(values) / math.sqrt(n)
        return max(0.0, p - half), min(1.0, p + half)
    return _wilson(p, n, confidence)


def _wilson(p: float, n: int, confidence: float) -> tuple[float, float]:
    z = _z(confidence)
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def _percentile(ms: Sequence[float], p: int, where: Where) -> Measurement:
    """A percentile, with the ranks between which it lies at the confidence (binomial, by its normal approximation)."""
    ordered, n = sorted(ms), len(ms)
    half = _z(where.confidence) * math.sqrt(n * p * (100 - p)) / 100
    low, high = math.floor(n * p / 100 - half), math.ceil(n * p / 100 + half)
    return Measurement(
        metric=f"latency_p{p}",
        value=percentile(ms, p),
        unit="ms",
        n=n,
        low=ordered[max(0, low - 1)],
        high=ordered[min(n - 1, high)],
        kind=where.kind,
        device=where.device,
        runtime=where.runtime,
    )


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
