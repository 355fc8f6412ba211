"""Answers of a text model as `wire.processing` gives them, drawn: for what a device counts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from wire.pipeline import SCORES
from wire.processing import Result

LANGUAGES = ("en", "de", "fr", "und")


def answers(labels: Sequence[str], n: int, *, seed: int, languages: Sequence[str] = LANGUAGES) -> Iterator[Result]:
    """`n` of them, each label as often as the next, sure and unsure, short and long."""
    draw = np.random.default_rng(seed)
    for _ in range(n):
        scores = np.array([draw.random()], np.float32)
        label, language = (str(some[draw.integers(len(some))]) for some in (labels, languages))
        yield Result({SCORES: scores}, (label,), length=int(draw.lognormal(3, 1.5)), language=language)
