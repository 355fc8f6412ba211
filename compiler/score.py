"""The process that scores texts with one variant: a folder and texts in, scores and times out.

    results = score(folder, texts)      # starts `python -m compiler score`, one per variant

The parent asks; `main` answers in the child. The child's standard output carries one JSON document.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from compiler.errors import Incompatible
from wire.units import show_seconds

WARM_UP = 5
_DEADLINE = 3600.0
_LINES = 3


@dataclass(frozen=True)
class Scored:
    """For each text the scores `[classes]`, and the time in ms from text to scores."""

    scores: tuple[tuple[float, ...], ...]
    ms: tuple[float, ...]


def score(folder: Path, texts: Sequence[str]) -> Scored:
    """Raises `Incompatible` when the runtime refuses the variant or dies on it."""
    question = json.dumps({"folder": str(folder), "texts": list(texts)}).encode()
    command = [sys.executable, "-P", "-m", "compiler", "score"]
    try:
        done = subprocess.run(command, input=question, capture_output=True, check=False, timeout=_DEADLINE)
    except subprocess.TimeoutExpired as e:
        raise Incompatible(
            f"the variant is too slow: {len(texts)} texts took over {show_seconds(_DEADLINE)}: use fewer test texts"
        ) from e
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-_LINES:]
        raise Incompatible(f"the variant does not run here (exit {done.returncode}): {' '.join(last)[-500:]}")
    answer = json.loads(done.stdout)
    return Scored(scores=tuple(map(tuple, answer["scores"])), ms=tuple(answer["ms"]))


def main(question: IO[bytes], answer: IO[bytes]) -> None:
    """The child: answer one question."""
    from compiler.runtime import open_variant

    asked = json.load(question)
    variant = open_variant(Path(asked["folder"]))
    for _ in range(WARM_UP):
        variant.scores(asked["texts"][0])
    scores, times = [], []
    for text in asked["texts"]:
        started = time.perf_counter()
        scores.append(variant.scores(text))
        times.append((time.perf_counter() - started) * 1e3)
    answer.write(json.dumps({"scores": scores, "ms": times}).encode())
