"""What the comparing gates look at: counts of a device that can be taken off each other, and changes made of them.

    tally(comparison, factor)                   # what a device counted since `since`; two tallies give a span by minus
    change("latency", comparison, span)         # by how much it is worse than before

A change above 0 is worse. What is allowed is taken off that of a candidate before it is ranked among devices that were
not updated: if it is just as bad as allowed, all these changes have the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import starmap
from operator import sub
from typing import Literal

from fleet.gates.thresholds import KINDS
from fleet.gates.values import Behaviour, Comparison

REQUESTS, LABELS, COMPARED, HOURS = range(4)
"""Kinds of evidence, and their places in a tally."""
WORDS = ("requests", "labels", "answers compared", "hours")
_ERRORS, _WRONG, _DIFFERED, _RESTARTS, _TIMED, _LOGS, _SLOW = range(4, 11)
Tally = tuple[float, ...]
"""Requests, labels, compared, hours; errors, wrong, differed, restarts; answers with a time, their logarithms, slow."""
NOTHING: Tally = (0.0,) * 11
WIDER = 2.0
"""How many times the limit is allowed where no device is left to compare with."""


@dataclass(frozen=True)
class Measure:
    """A gate that compares. Its test is done when a device's evidence of a kind first reaches each of `sizes`."""

    kind: int
    sizes: tuple[int, ...]
    change: Callable[[Comparison, Tally], float | None]
    times: Literal["", "typical", "slow"] = ""
    """What it wants to know of times."""

    def factor(self, limit: float = 1.0) -> float | None:
        """The factor for `tally`: 0 leaves the slow answers out."""
        return {"": None, "typical": 0.0, "slow": limit}[self.times]


def tally(one: Comparison, factor: float | None = 1.0) -> Tally:
    """What a device counted after `since`. Slow: slower than the p99 of before, times `factor`.

    With None it says nothing of times, and no sketch is read.
    """
    after = one.after
    if after is None:
        return NOTHING
    times = _times(one, after, factor) if factor is not None else (0, 0.0, 0)
    return (
        after.requests,
        after.feedback_total,
        after.compared,
        hours(one),
        after.errors,
        after.feedback_total - after.feedback_correct,
        after.compared - after.agreed,
        after.restarts,
        *times,
    )


def _times(one: Comparison, after: Behaviour, factor: float) -> tuple[int, float, int]:
    p99 = one.before.latency_ms.quantile(0.99) if one.before is not None and factor else None
    slow = after.latency_ms.above(p99 * factor) if p99 is not None else 0
    return after.latency_ms.count, after.latency_ms.log_sum, slow


def minus(later: Tally, earlier: Tally) -> Tally:
    """What came between two tallies."""
    return tuple(starmap(sub, zip(later, earlier, strict=True))) if any(earlier) else later


def amounts(one: Comparison) -> tuple[float, float, float, float]:
    """How much evidence of each kind there is, without reading a sketch."""
    after = one.after
    if after is None:
        return (0.0, 0.0, 0.0, 0.0)
    return after.requests, after.feedback_total, after.compared, hours(one)


def before(one: Behaviour | None, kind: int) -> float:
    """How much evidence of a kind there was before."""
    if one is None:
        return 0.0
    return (one.requests, one.feedback_total, 0.0, (one.ends - one.begins).total_seconds() / 3600)[kind]


def hours(one: Comparison) -> float:
    """From `since` to the newest evidence."""
    return max(0.0, (one.after.ends - one.since).total_seconds() / 3600) if one.after is not None else 0.0


def change(name: str, one: Comparison, span: Tally) -> float | None:
    """By how much a device is worse than before; None: it does not say.

    For factors it is a logarithm, for everything else the unit of the limit; of `tail` it is the share of slow answers.
    """
    return MEASURES[name].change(one, span)


def allowed(name: str, limit: float) -> float:
    """What may be taken off a candidate's change before it is ranked. The limit of `tail` is in its tally already."""
    if name == "tail":
        return 0.0
    return math.log(limit) if KINDS[name].unit == "times" else limit


def wider(name: str, limit: float) -> float:
    """The limit where there is nothing to compare with but before: a busy hour counts against the model there."""
    return limit**WIDER if KINDS[name].unit == "times" else limit * WIDER


def shown(name: str, effect: float) -> str:
    """An effect, as the gates keep it, in words."""
    if name == "tail":
        return f"{100 * effect:+.2f} points of answers slower than allowed"
    if KINDS[name].unit == "times":
        return f"{math.exp(effect):.3g} times"
    return f"{effect:+.3g} {KINDS[name].unit}"


def plain(name: str, effect: float) -> float:
    """An effect in the unit of its limit: a factor, not its logarithm."""
    return math.exp(effect) if KINDS[name].unit == "times" and name != "tail" else effect


def _latency(one: Comparison, span: Tally) -> float | None:
    if one.before is None or span[_TIMED] <= 0 or not one.before.latency_ms.count:
        return None
    return span[_LOGS] / span[_TIMED] - one.before.latency_ms.log_sum / one.before.latency_ms.count


def _tail(one: Comparison, span: Tally) -> float | None:
    if one.before is None or span[_TIMED] <= 0 or not one.before.latency_ms.count:
        return None
    return span[_SLOW] / span[_TIMED]


def _errors(one: Comparison, span: Tally) -> float | None:
    if one.before is None or not one.before.requests or span[REQUESTS] <= 0:
        return None
    return 100 * (span[_ERRORS] / span[REQUESTS] - one.before.errors / one.before.requests)


def _accuracy(one: Comparison, span: Tally) -> float | None:
    was = one.before
    if was is None or not was.feedback_total or span[LABELS] <= 0:
        return None
    return 100 * (span[_WRONG] / span[LABELS] - 1 + was.feedback_correct / was.feedback_total)


def _memory(one: Comparison, _: Tally) -> float | None:
    was, now = one.before, one.after
    if was is None or now is None or not was.memory or not now.memory:
        return None
    return math.log(now.memory / was.memory)


def _temperature(one: Comparison, _: Tally) -> float | None:
    was, now = one.before, one.after
    if was is None or now is None or was.temperature_c is None or now.temperature_c is None:
        return None
    return now.temperature_c - was.temperature_c


def _restarts(one: Comparison, span: Tally) -> float | None:
    was = before(one.before, HOURS)
    if one.before is None or was <= 0 or span[HOURS] <= 0:
        return None
    return 24 * (span[_RESTARTS] / span[HOURS] - one.before.restarts / was)


def _first_errors(_: Comparison, span: Tally) -> float | None:
    return span[_ERRORS] / span[REQUESTS] if span[REQUESTS] > 0 else None


def _first_restarts(_: Comparison, span: Tally) -> float | None:
    return float(span[_RESTARTS] > 0)


def _agreement(_: Comparison, span: Tally) -> float | None:
    return span[_DIFFERED] / span[COMPARED] if span[COMPARED] > 0 else None


MEASURES: Mapping[str, Measure] = {
    "latency": Measure(REQUESTS, (32, 128, 512), _latency, "typical"),
    "tail": Measure(REQUESTS, (256, 1024, 4096), _tail, "slow"),
    "errors": Measure(REQUESTS, (32, 128, 512, 2048), _errors),
    "accuracy": Measure(LABELS, (64, 128, 256, 512, 1024, 2048, 4096), _accuracy),
    "memory": Measure(REQUESTS, (32, 512), _memory),
    "temperature": Measure(REQUESTS, (32, 512), _temperature),
    "restarts": Measure(HOURS, (1, 4, 16, 64), _restarts),
}
"""Gates that rank a device among its peers."""
ABSOLUTE: Mapping[str, Measure] = {
    "first_errors": Measure(REQUESTS, (32, 128, 512, 2048), _first_errors),
    "first_restarts": Measure(HOURS, (1, 4, 16, 64), _first_restarts),
    "agreement": Measure(COMPARED, (32, 128, 512, 2048), _agreement),
}
"""Gates that hold a value from 0 to 1 against a limit: there is nothing to compare with."""
