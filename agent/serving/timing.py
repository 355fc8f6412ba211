"""The timing of a bundle that this device does not serve, in a process of its own with a low priority.

`python -m agent.serving.timing STORE DIGEST WORKERS ROUNDS SECONDS` loads the bundle in the runtime that would serve
it, checks its golden set, warms up, and times every golden input in turn, round after round, until `ROUNDS` are done or
`SECONDS` are over. It prints one line of JSON, an `Outcome`; `fault` says in words what does not hold.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

from agent.errors import AgentError, Incompatible
from agent.serving.bundles import Bundle, Loaded, load_model
from agent.serving.selftest import be_a_child, in_child, resident
from agent.store.blobs import Blobs
from wire.errors import WireError

WARM_UP: Final = 3
"""Rounds that are not counted: caches fill, and the clock rises."""
CONFIDENCE: Final = 0.95
NICENESS: Final = 10
STOPS_AT: Final = 0.9
"""Share of the time allowed after which no further round begins."""


@dataclass(frozen=True)
class Outcome:
    """What the timing found: `timing` are the fields of `wire.messages.Timing` but the states of the machine."""

    fault: str | None
    timing: Mapping[str, Any] | None = None


async def time_bundle(
    store: Path,
    digest: str,
    workers: Mapping[str, str],
    rounds: int,
    timeout: float,  # noqa: ASYNC109  the child is killed at it
) -> Mapping[str, Any]:
    """Time it in a child process. Raises `Incompatible` when the golden set does not hold or the child dies."""
    arguments = [str(store), digest, json.dumps(dict(workers)), str(rounds), str(timeout * STOPS_AT)]
    outcome = Outcome(**await in_child("measuring", "agent.serving.timing", arguments, timeout))
    if outcome.timing is None:
        raise Incompatible(f"measuring: {outcome.fault}")
    return outcome.timing


def time_here(bundle: Bundle, workers: Mapping[str, str], rounds: int, until: float) -> Outcome:
    """Load, check and time a bundle in this process; no round begins after `until` on the monotonic clock."""
    from wire.processing import example_of, golden_fault  # noqa: PLC0415  numpy comes with a model

    before, started = resident(), time.perf_counter()
    model = load_model(bundle, workers)
    load_ms = (time.perf_counter() - started) * 1000
    cases = [(case, example_of(case)) for case in bundle.golden.cases]
    found = (golden_fault(case, model.answer(example), bundle.golden.max_abs) for case, example in cases)
    faults = [fault for fault in found if fault is not None]
    memory = max(resident() - before, 0)
    if faults:
        return Outcome(f"{len(faults)} of {len(cases)} golden cases do not hold: {faults[0]}")
    examples = [example for _, example in cases]
    _rounds(model, examples, WARM_UP, until)
    times = _rounds(model, examples, rounds, until)
    runtime = model.runtime
    model.close()
    if not times:
        return Outcome("no whole round of the golden inputs in the time allowed: see the setting 'measure_timeout'")
    figures = {"runtime": runtime, "rounds": len(times) // len(examples), "load_ms": load_ms, "memory": memory}
    return Outcome(None, {**figures, **percentiles(times)})


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """p50 and p99 by nearest rank, each with the ranks between which it lies (binomial, normal approximation)."""
    ordered, n = sorted(times), len(times)
    found: dict[str, float] = {"n": n, "confidence": CONFIDENCE}
    for p in (50, 99):
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(n * p * (100 - p)) / 100
        low, high = math.floor(n * p / 100 - half), math.ceil(n * p / 100 + half)
        found[f"p{p}_ms"] = ordered[math.ceil(n * p / 100) - 1]
        found[f"p{p}_low"] = ordered[max(0, low - 1)]
        found[f"p{p}_high"] = ordered[min(n - 1, high)]
    return found


def _rounds(model: Loaded, examples: Sequence[Any], rounds: int, until: float) -> list[float]:
    """Times in ms of whole rounds."""
    times = []
    for _ in range(rounds):
        if time.monotonic() >= until:
            break
        for example in examples:
            started = time.perf_counter()
            model.answer(example)
            times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> int:
    """Entry point of the child."""
    be_a_child()
    os.nice(NICENESS)
    folder, digest, workers, rounds, seconds = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    try:
        bundle = Bundle.open(Blobs(Path(folder), min_free=0), digest)
        outcome = time_here(bundle, json.loads(workers), int(rounds), until)
    except (AgentError, WireError) as e:
        outcome = Outcome(str(e))
    sys.stdout.write(f"\n{json.dumps(asdict(outcome))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
