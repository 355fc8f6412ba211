"""What inputs and answers of one model look like on one device in one window: four tables of counts. Pure.

    look = Look().plus(stats)             # `InferenceStats` of a telemetry record
    Look.parse(look.text()) == look

A window is a day, in UTC: what people ask at night is not what they ask in the evening, so only whole days are held
against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

import orjson

from wire.evidence import Reference
from wire.messages import InferenceStats
from wire.units import show_instant

Kind = Literal["labels", "confidence", "lengths", "languages"]
KINDS: Final[tuple[Kind, ...]] = ("labels", "confidence", "lengths", "languages")
Counts = Mapping[str, float]

WINDOW: Final = timedelta(days=1)
MOST_KEYS: Final = 400
"""Entries of one table of one device: a liar makes up labels."""
LONGEST_KEY: Final = 100
"""Characters of a label that are kept."""
_SMALLEST: Final = 0.05
"""What faded to less is forgotten."""
_FULL: Final = 1 << 62
"""Where a count stops rising: JSON and databases take 64 bits."""


@dataclass(frozen=True)
class Look:
    """Counts by label, by bin of confidence (0 to 19), by bucket of length (`wire.sketch`), by language; feedback."""

    labels: Counts = field(default_factory=dict)
    confidence: Counts = field(default_factory=dict)
    lengths: Counts = field(default_factory=dict)
    languages: Counts = field(default_factory=dict)
    feedback: float = 0.0
    correct: float = 0.0

    @classmethod
    def of(cls, told: InferenceStats | Reference) -> Self:
        """What a device told, or the compiler."""
        asked = told if isinstance(told, InferenceStats) else None
        return cls(
            labels=_bounded({name[:LONGEST_KEY]: n for name, n in told.labels.items()}),
            confidence={str(i): n for i, n in enumerate(told.confidence.bins) if n},
            lengths=_bounded(told.lengths.buckets),
            languages=_bounded(told.languages),
            feedback=asked.feedback_total if asked else 0,
            correct=min(asked.feedback_correct, asked.feedback_total) if asked else 0,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `text`."""
        return cls(**orjson.loads(text))

    def text(self) -> str:
        """As JSON, without what is empty."""
        return orjson.dumps({k: v for k, v in vars(self).items() if v}, option=orjson.OPT_SORT_KEYS).decode()

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def table(self, kind: Kind) -> Counts:
        """The counts of a kind."""
        found: Counts = getattr(self, kind)
        return found

    def plus(self, other: Look) -> Look:
        """Both together."""
        return Look(**{k: _sum(v, getattr(other, k)) for k, v in vars(self).items()})

    def faded(self, share: float) -> Look:
        """The same with every count that many times as large."""
        return Look(**{k: _scaled(v, share) for k, v in vars(self).items()})


def tells(stats: InferenceStats) -> bool:
    """Whether a record says anything of this: most do not, and are asked thousands of times a second."""
    named = stats.labels or stats.languages or stats.lengths.buckets
    return bool(named or stats.feedback_total or any(stats.confidence.bins))


def window_of(at: datetime) -> str:
    """The window that a moment lies in, by its beginning."""
    seconds = int(at.timestamp() // WINDOW.total_seconds() * WINDOW.total_seconds())
    return show_instant(datetime.fromtimestamp(seconds, UTC))


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, (int, float)):
        return min(a + b, _FULL)
    if not b:
        return a
    return _bounded({key: min(a.get(key, 0) + b.get(key, 0), _FULL) for key in {**a, **b}})


def _scaled(value: Any, share: float) -> Any:
    if isinstance(value, (int, float)):
        return round(value * share, 2)
    return {key: round(n * share, 2) for key, n in value.items() if n * share >= _SMALLEST}


def _bounded(counts: Counts) -> Counts:
    """The largest `MOST_KEYS`; what falls off was too rare to be told apart anyway."""
    if len(counts) <= MOST_KEYS:
        return dict(counts)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_KEYS])
