"""What inputs and answers of a model look like: counted alike on devices and over the examples of a build. Pure.

    shapes = Shapes()
    shapes.add(result)                       # of `wire.processing`
    shapes.fields(room=2048, offset=0.3)     # the fields of `InferenceStats` and of `Reference`

A device sends them once an hour, in at most `ROOM` bytes for all its models. What does not fit is thinned, not cut: an
even sample of the answers stands for all of them, so that what is rare on one device still counts in a fleet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wire.document import dump_json
from wire.pipeline import SCORES
from wire.sketch import Histogram, Sketch

if TYPE_CHECKING:
    from wire.processing import Result

ROOM: Final = 2048
"""Bytes of JSON that a device sends in an hour of these four."""
FOLD: Final = 512
"""Numbers kept before they are folded into a sketch."""
_NAMES: Final = len(b'"confidence":,"labels":,"languages":,"lengths":{"buckets":},')
_EXACT: Final = 1 << 30
"""Room of who need not save any."""


@dataclass
class Shapes:
    """Counts of answers and inputs."""

    labels: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    _confidence: Histogram = field(default_factory=Histogram)
    _lengths: Sketch = field(default_factory=Sketch)
    _sure: list[float] = field(default_factory=list)
    _long: list[int] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one answer: its labels, the best score of each row, and what is known of its input."""
        if SCORES in result.outputs:
            self._sure.extend(result.outputs[SCORES].max(axis=-1).reshape(-1).tolist())
        for label in result.labels:
            self.labels[label] += 1
        if result.length is not None:
            self._long.append(result.length)
        if result.language:
            self.languages[result.language] += 1
        if len(self._sure) + len(self._long) >= FOLD:
            self._fold()

    def _fold(self) -> None:
        self._confidence = self._confidence.merge(Histogram.of(self._sure))
        self._lengths = self._lengths.merge(Sketch.of(self._long).coarse())
        self._sure, self._long = [], []

    def fields(self, *, room: int = _EXACT, offset: float = 0.5) -> dict[str, Any]:
        """`confidence`, `labels`, `lengths` and `languages`, in at most `room` bytes; `offset` as of `thinned`."""
        self._fold()
        room -= _NAMES + _size(self._confidence.to_value())
        languages = thinned(self.languages, room // 5, offset)
        lengths = thinned(self._lengths.buckets, room // 2, offset)
        labels = thinned(self.labels, room - _size(languages) - _size(lengths), offset)
        confidence = self._confidence if room >= 0 else Histogram()
        return {
            "confidence": confidence,
            "labels": labels,
            "lengths": Sketch(buckets=lengths),
            "languages": languages,
        }


def thinned(counts: Mapping[str, int], room: int, offset: float) -> dict[str, int]:
    """The counts if their JSON fits into `room` bytes, else those of an even sample, scaled up again.

    Every `step`-th of all that was counted is taken, from a place that `offset` (0 to 1, drawn anew each time) names:
    systematic sampling (Cochran, Sampling Techniques, 1977, chapter 8), so the expected share of each stays what it is.
    Where there is no room even for one, there is nothing.
    """
    step, found, total = 1, dict(counts), sum(counts.values())
    while _size(found) > room and found:
        step *= 2
        found = _every(counts, step, offset) if step <= 4 * total else {}
    return found


def _every(counts: Mapping[str, int], step: int, offset: float) -> dict[str, int]:
    start, seen, found = offset * step, 0, {}
    for name in sorted(counts):
        before, seen = seen, seen + counts[name]
        taken = int((seen - start) // step) - int((before - start) // step)
        if taken:
            found[name] = taken * step
    return found


def _size(value: Any) -> int:
    return len(dump_json(value))
