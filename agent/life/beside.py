"""Counts what models in shadow said beside those that answer. Holds no text: labels, scores and times only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.store.streams import added
from wire.messages import InferenceStats
from wire.sketch import Histogram, Sketch

MOST_LABELS: Final = 400
"""Labels of one model in one record, the most frequent ones, as of a model that answers."""


@dataclass(frozen=True)
class Said:
    """What came of one request: milliseconds, or why there is no answer; whether it agreed with the active model."""

    ms: float
    fault: str = ""
    agreed: bool = False
    labels: Sequence[str] = ()
    confidences: Sequence[float] = ()


class ShadowMeter:
    """The open window, by model and digest."""

    def __init__(self) -> None:
        self._window: dict[tuple[str, str], InferenceStats] = {}

    def said(self, model: str, digest: str, said: Iterable[Said]) -> None:
        """A few requests were run."""
        new = _stats(model, digest, list(said))
        if not new.requests:
            return
        known = self._window.get((model, digest))
        self._window[model, digest] = new if known is None else added(known, new)

    def close(self) -> tuple[InferenceStats, ...]:
        """What the window held; the next one is empty."""
        window, self._window = self._window, {}
        return tuple(stats for _, stats in sorted(window.items()))


def _stats(model: str, digest: str, said: Sequence[Said]) -> InferenceStats:
    sound = [one for one in said if not one.fault]
    labels = Counter(label for one in sound for label in one.labels)
    return InferenceStats(
        model=model,
        digest=digest,
        requests=len(said),
        errors=len(said) - len(sound),
        latency_ms=Sketch.of([one.ms for one in sound]),
        confidence=Histogram.of([score for one in sound for score in one.confidences]),
        labels=dict(labels.most_common(MOST_LABELS)),
        shadow=True,
        compared=len(sound),
        agreed=sum(one.agreed for one in sound),
    )
