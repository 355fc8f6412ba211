"""What is plainly broken on one device, without statistics: for profiles of few devices, and to stop at once.

There is no stated rate of false alarms: a device that happens to break then counts. So two are asked for, or the only
one there is.
"""

from __future__ import annotations

import math

from fleet.gates.measures import HOURS, LABELS, REQUESTS, Tally, before, change
from fleet.gates.values import Comparison

LEAST = 32
"""Requests."""
ERRORS, ERRORS_BEFORE = 50.0, 25.0
"""Percent of the requests that fail, and of those of before that must not have been reached."""
TIMES = 5.0
"""Times the time of before."""
WRONG = 30.0
"""Points of accuracy lost, over `LEAST` labels."""
RESTARTS = 3
"""More than before."""


def gross(one: Comparison, span: Tally) -> str:
    """What is broken, in words; "" when nothing is."""
    expected = one.before.restarts / max(before(one.before, HOURS), 1e-9) * span[HOURS] if one.before else 0.0
    if span[7] - expected >= RESTARTS:
        return f"restarted {span[7]:.0f} times in {span[HOURS]:.1f} h"
    return _failing(one, span) or _slow(one, span) or _wrong(one, span)


def _failing(one: Comparison, span: Tally) -> str:
    was = one.before
    before_percent = 100 * was.errors / was.requests if was is not None and was.requests else 0.0
    if span[REQUESTS] < LEAST or before_percent >= ERRORS_BEFORE:
        return ""
    percent = 100 * span[4] / span[REQUESTS]
    return f"{percent:.0f} % of {span[REQUESTS]:.0f} requests fail" if percent >= ERRORS else ""


def _slow(one: Comparison, span: Tally) -> str:
    slower = change("latency", one, span)
    if span[REQUESTS] < LEAST or slower is None or slower < math.log(TIMES):
        return ""
    return f"{math.exp(slower):.1f} times as slow as before over {span[REQUESTS]:.0f} requests"


def _wrong(one: Comparison, span: Tally) -> str:
    lost = change("accuracy", one, span)
    if span[LABELS] < LEAST or before(one.before, LABELS) < LEAST or lost is None or lost < WRONG:
        return ""
    return f"{lost:.0f} points less accurate by {span[LABELS]:.0f} labels"
