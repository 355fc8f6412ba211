"""Probation: whether a candidate that answers may stay. Pure; the installer counts, and runs the golden set again.

    judge(candidate, active, rules)     # None: so far nothing speaks against it; or the reason in words

The active model's own figures, from before the switch on this very device, are what the candidate is held against.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

KEPT: Final = 200
"""Latencies that are kept of a model: the newest ones."""
ENOUGH: Final = 10
"""Answers of each model below which their latencies say nothing."""
NOISE_MS: Final = 5.0
"""Milliseconds by which a median may rise whatever the factor says: a busy machine moves it that far."""


@dataclass
class Figures:
    """What a model did since it was loaded; latency in milliseconds."""

    answers: int = 0
    errors: int = 0
    last_error: str = ""
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def answered(self, latency_ms: float) -> None:
        """A request got its answer."""
        self.answers += 1
        self.latencies.append(latency_ms)

    def failed(self, reason: str) -> None:
        """A request got none, by the model's fault."""
        self.errors += 1
        self.last_error = reason

    @property
    def requests(self) -> int:
        """Answered and failed."""
        return self.answers + self.errors


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`requests` that are enough to judge by; `errors`: percent of them that may fail; `slowdown`: times the median."""

    requests: int
    errors: int
    slowdown: int


def judge(candidate: Figures, active: Figures | None, rules: Rules) -> str | None:
    """What speaks against a candidate now. Called after every request, so a bad one goes at once."""
    return _errors(candidate, active, rules) or _latency(candidate.latencies, active, rules)


def is_enough(candidate: Figures, rules: Rules) -> bool:
    """Whether it was asked often enough to be committed before its time is over."""
    return candidate.answers >= rules.requests


def _errors(candidate: Figures, active: Figures | None, rules: Rules) -> str | None:
    """More may fail where the active model failed as often: those requests are what is wrong then."""
    share = rules.errors / 100
    if active is not None and active.requests >= rules.requests:
        share = max(share, active.errors / active.requests)
    if candidate.errors <= share * max(candidate.requests, rules.requests):
        return None
    return f"{candidate.errors} of {candidate.requests} requests failed: {candidate.last_error}"


def _latency(candidate: Iterable[float], active: Figures | None, rules: Rules) -> str | None:
    new, old = list(candidate), list(active.latencies) if active is not None else []
    if min(len(new), len(old)) < ENOUGH:
        return None
    before, now = median(old), median(new)
    if now <= max(rules.slowdown * before, before + NOISE_MS):
        return None
    return f"its median latency is {now:.1f} ms, that of the model before was {before:.1f} ms"
