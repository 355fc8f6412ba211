"""Which released model to take for a profile: those that hold the limits, ranked by evidence from this fleet. Pure.

    ranked = suggest(candidates, Wish(profile="raspberry-pi-4", task="text-classification", max_ms=20))
    ranked[0].target, ranked[0].fit, ranked[0].reasons

How long a model takes is believed from the best ground there is: what the fleet's own devices of the profile needed in
use, then a measuring job on hardware of the profile, then figures of the build (measured, emulated, predicted). Its
quality likewise: labels that came from the fleet's apps, then the build's held-out examples. Figures of two grounds are
never averaged, and each suggestion says which it stands on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Ground = Literal["fleet", "measured", "emulated", "predicted"]
Fit = Literal["fits", "unknown", "too slow", "too large", "not accurate enough"]
_GROUNDS: Final[tuple[Ground, ...]] = ("fleet", "measured", "emulated", "predicted")
_FITS: Final[tuple[Fit, ...]] = ("fits", "unknown", "not accurate enough", "too slow", "too large")
ENOUGH_ANSWERS: Final = 100
"""Answers of the fleet below which its latency says less than a measuring job."""
ENOUGH_LABELS: Final = 50


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a model is wanted for: 0 is no limit. `max_ms` is of the median, `max_mb` of the whole bundle."""

    profile: str
    task: str = ""
    max_ms: float = 0.0
    max_mb: float = 0.0
    min_accuracy: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A median in ms, with the interval where there is one, of `n` answers on `devices` devices."""

    ground: Ground
    p50_ms: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    devices: int = 0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A share of right answers, or of those that agree with the source: `metric` says which. `n` answers."""

    ground: Literal["fleet", "build"]
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A release of the profile with all that is known of it."""

    target: str
    digest: str
    task: str
    profile: str
    size: int
    devices: int = 0
    aliases: tuple[str, ...] = ()
    latencies: tuple[Latency, ...] = ()
    qualities: tuple[Quality, ...] = ()

    @property
    def latency(self) -> Latency | None:
        """The one on the best ground that is broad enough."""
        ranked = sorted(self.latencies, key=lambda one: _GROUNDS.index(one.ground))
        broad = [one for one in ranked if one.ground != "fleet" or one.n >= ENOUGH_ANSWERS]
        return next(iter(broad or ranked), None)

    @property
    def quality(self) -> Quality | None:
        """That of the fleet once it has enough labels, else the build's."""
        broad = [one for one in self.qualities if one.ground != "fleet" or one.n >= ENOUGH_LABELS]
        return min(broad or self.qualities, key=lambda one: one.ground != "fleet", default=None)


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A candidate, whether it holds the limits, and why it stands where it stands."""

    candidate: Candidate
    fit: Fit
    reasons: tuple[str, ...]


def suggest(candidates: Iterable[Candidate], wish: Wish) -> list[Suggestion]:
    """Candidates of the profile and task, the best first.

    Those that hold every limit stand before those of which it is not known, and these before those that do not. Among
    equals the higher lower bound of quality counts, then the shorter time, then the smaller bundle.
    """
    of_wish = [c for c in candidates if c.profile == wish.profile and wish.task in ("", c.task)]
    judged = [_judge(candidate, wish) for candidate in of_wish]
    return sorted(judged, key=_rank)


def _judge(candidate: Candidate, wish: Wish) -> Suggestion:
    found = [*_size(candidate, wish), *_time(candidate, wish), *_right(candidate, wish)]
    worst: Fit = max((fit for fit, _ in found), key=_FITS.index, default="fits")
    return Suggestion(candidate=candidate, fit=worst, reasons=tuple(words for _, words in found))


def _size(candidate: Candidate, wish: Wish) -> Iterable[tuple[Fit, str]]:
    mb = candidate.size / 2**20
    if wish.max_mb and mb > wish.max_mb:
        yield "too large", f"{mb:.1f} MiB, over {wish.max_mb:g}"
    else:
        yield "fits", f"{mb:.1f} MiB"


def _time(candidate: Candidate, wish: Wish) -> Iterable[tuple[Fit, str]]:
    latency = candidate.latency
    if latency is None:
        yield ("unknown" if wish.max_ms else "fits"), "no latency is known: measure it with `shoal measure start`"
        return
    words = f"p50 {latency.p50_ms:.3g} ms, {_taken(latency)}"
    # What is only predicted, or was taken on another machine, may not promise that it holds.
    known: Fit = "fits" if latency.ground in ("fleet", "measured") or not wish.max_ms else "unknown"
    if wish.max_ms and (latency.low if latency.low is not None else latency.p50_ms) > wish.max_ms:
        yield "too slow", f"{words}, over {wish.max_ms:g}"
    elif wish.max_ms and (latency.high if latency.high is not None else latency.p50_ms) > wish.max_ms:
        yield "unknown", f"{words}: its interval reaches over {wish.max_ms:g}"
    else:
        yield known, words


def _right(candidate: Candidate, wish: Wish) -> Iterable[tuple[Fit, str]]:
    quality = candidate.quality
    if quality is None:
        yield ("unknown" if wish.min_accuracy else "fits"), "nothing is known of how right it is"
        return
    where = "labels from this fleet" if quality.ground == "fleet" else "held-out examples of its build"
    words = f"{quality.metric} {quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f}) by {quality.n} {where}"
    if wish.min_accuracy and quality.high < wish.min_accuracy:
        yield "not accurate enough", f"{words}, below {wish.min_accuracy:g}"
    elif wish.min_accuracy and quality.low < wish.min_accuracy:
        yield "unknown", f"{words}: its interval reaches below {wish.min_accuracy:g}"
    else:
        yield "fits", words


def _taken(latency: Latency) -> str:
    if latency.ground == "fleet":
        return f"in use on {latency.devices} of this fleet's devices, {latency.n} answers"
    return f"{latency.ground} on {latency.n} answers" if latency.n else latency.ground


def _rank(suggestion: Suggestion) -> tuple[int, float, float, int, str]:
    candidate = suggestion.candidate
    latency, quality = candidate.latency, candidate.quality
    return (
        _FITS.index(suggestion.fit),
        -quality.low if quality else 0.0,
        latency.p50_ms if latency else math.inf,
        candidate.size,
        candidate.target,
    )
