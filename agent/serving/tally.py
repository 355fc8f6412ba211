"""What one loaded model did: counts and times for `/metrics` and the protocol's statistics. No text, ever."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Outcome = Literal["answered", "failed", "malformed", "busy", "late", "left"]
"""Answered; the model's fault; the caller's fault; no room to wait in; over its time; the client left before."""
BOUNDS: Final = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of the latency histogram, in seconds; one more bucket holds the rest."""


@dataclass
class Tally:
    """Since the model was loaded; times in seconds. `buckets` are not cumulative."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    examples: int = 0
    seconds: float = 0.0
    queued: float = 0.0
    """Of that, waiting for the model."""
    failing: float = 0.0
    """Of the requests that failed."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def answered(self, seconds: float, examples: int) -> None:
        """A request got its answer."""
        self.outcomes["answered"] += 1
        self.examples += examples
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1

    def failed(self, seconds: float) -> None:
        """A request got none, by the model's fault."""
        self.outcomes["failed"] += 1
        self.failing += seconds

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """As the protocol's statistics extension has it; what is not measured apart is not there."""
        answered, failed = self.outcomes["answered"], self.outcomes["failed"]
        return {
            "name": name,
            "version": version,
            "inference_count": self.examples,
            "execution_count": self.examples,  # examples run one by one
            "inference_stats": {
                "success": _duration(answered, self.seconds),
                "fail": _duration(failed, self.failing),
                "queue": _duration(answered, self.queued),
                "compute_infer": _duration(answered, self.seconds - self.queued),
            },
            "batch_stats": [],
        }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(0, round(seconds * 1e9))}
