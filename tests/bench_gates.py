"""`scripts/bench gates`: how often the gates stop an equal model, and how soon they stop a worse one.

Rollouts over simulated devices (`tests/gate_worlds.py`) through the gates at their defaults, with a simulated clock,
looked at after every report:

    equal       `--rollouts` of them, two profiles of 50 devices, in the five worlds of `NULLS` in turn
    strict      a tenth as many, with limits of nothing and alpha at 20 %: the tests alone, no tolerance to hide behind
    slower      500 devices of four profiles; on one of them the candidate takes 1.3 times as long
    inaccurate  the same, and the candidate is right 2 points less often there; a device gets 1,200 labels an hour

Keys: `false_abort_percent`: the upper end of the 95 % interval (Clopper-Pearson) of the share of equal rollouts in
which any profile was aborted, `false_aborts` their number, `false_hold_percent` of those that suspected something to
the end, `looks`; `strict_abort_percent`, at most 20; `slow_candidate_waves`: the wave, from 1, in which the slower one
was stopped, the worst of all rollouts (0: it was not), `slow_devices` that had it by then, the most;
`samples_to_abort`: labels of the profile's devices with the candidate when it was stopped, the median, and
`accuracy_waves`, the worst wave.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from gate_worlds import NULLS, Profile, Result, World, roll_out

from fleet.gates.judging import alpha_of
from fleet.gates.measures import MEASURES, WORDS
from fleet.gates.sequential import Wealth, fewest, log_evidence, place, rank_bets, stake
from fleet.gates.thresholds import Gates, parse

FLEET = World(profiles=("pi-3", "pi-4", "jetson", "x86-64"), devices=125)
SLOWER = replace(FLEET, slower={"pi-3": 1.3})
INACCURATE = replace(FLEET, less_accurate={"pi-3": 2.0}, reports=12)
STRICT = {
    "alpha": "20 %", "latency": "1 times", "tail": "1 times", "memory": "1 times", "errors": "0 points",
    "accuracy": "0 points", "temperature": "0 C", "restarts": "0 a day", "gross": "off",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000, help="with an equal model")
    parser.add_argument("--worse", type=int, default=20, help="of each kind with a worse one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--needed", action="store_true", help="only how many devices each gate needs")
    parser.add_argument("--compare", action="store_true", help="only ranks against a t mixture, on Gaussian devices")
    options = parser.parse_args()
    if options.needed:
        needed()
        return
    if options.compare:
        compare()
        return
    with ProcessPoolExecutor(options.processes) as pool:
        found = equal(pool, options.rollouts) | strict(pool, options.rollouts // 10)
        print(json.dumps(found | slower(pool, options.worse) | inaccurate(pool, options.worse)))


def needed() -> None:
    """The fewest devices with the candidate, each worse than all of its peers, that make a verdict."""
    peers, gates = (9, 4, 1, 0), Gates()
    print(f"{'gate':<16}{'evidence a device':<56}" + "".join(f"{n:>9}" for n in peers) + "   peers")
    for name, measure in MEASURES.items():
        sizes = f"{', '.join(map(str, measure.sizes))} {WORDS[measure.kind]}"
        print(f"{name:<16}{sizes:<56}" + "".join(f"{fewest(n, alpha_of(gates, name)):>9}" for n in peers))


def compare(draws: int = 1000) -> None:
    """How often a candidate that is worse by so many standard deviations is found, by ranks and by the t mixture.

    Lai 1976; Wang and Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown
    variance": on the differences from the mean of nine peers, with a prior of 2 on effect over deviation.
    """
    least, rng = -math.log(alpha_of(Gates(), "latency")), np.random.default_rng(1)
    print(f"{'devices':>8}{'shift':>8}{'ranks':>8}{'t mixture':>12}")
    for n, shift in product((6, 8, 12), (2.0, 3.0, 4.0)):
        ranks, mixture = 0, 0
        for _ in range(draws):
            own, peers = rng.normal(shift, 1.0, n), rng.normal(0.0, 1.0, (n, 9))
            wealth: Wealth = ()
            for value, others in zip(own.tolist(), peers.tolist(), strict=True):
                wealth = stake(wealth, rank_bets(place(value, others)))
            ranks += log_evidence(wealth) >= least
            mixture += max(map(_t_mixture, _beginnings(own - peers.mean(axis=1)))) >= least
        print(f"{n:>8}{shift:>8.0f}{100 * ranks / draws:>7.0f}%{100 * mixture / draws:>11.0f}%")


def _beginnings(found: np.ndarray) -> list[np.ndarray]:
    return [found[:m] for m in range(2, len(found) + 1)]


def _t_mixture(x: np.ndarray, prior: float = 2.0) -> float:
    k, m, total, squares = prior**-2, len(x), float(x.sum()), float((x**2).sum())
    if total <= 0:
        return 0.0
    scaled = (k + m) * squares
    return 0.5 * math.log(k / (k + m)) + m / 2 * math.log(scaled / (scaled - total**2))


def equal(pool: ProcessPoolExecutor, rollouts: int) -> dict[str, Any]:
    """The worlds in turn."""
    began, names = time.monotonic(), list(NULLS)
    worlds = [names[i % len(names)] for i in range(rollouts)]
    found = list(pool.map(_equal, worlds, range(rollouts), chunksize=8))
    print(f"{'equal model':<16}{'rollouts':>10}{'looks':>12}{'aborted':>10}{'suspected':>12}{'waiting':>10}")
    for name in names:
        _row(name, [one for world, one in zip(worlds, found, strict=True) if world == name])
    _row("all", found)
    aborts = sum(one.aborted for one in found)
    print(f"{time.monotonic() - began:.0f} s")
    return {
        "false_abort_percent": round(100 * upper(aborts, rollouts), 3),
        "false_aborts": aborts,
        "false_hold_percent": round(100 * sum(map(_suspected, found)) / rollouts, 2),
        "looks": sum(one.looks for one in found),
    }


def strict(pool: ProcessPoolExecutor, rollouts: int) -> dict[str, Any]:
    """What the tests promise, without what the limits add: devices differ by nothing that a restart brings."""
    names = list(NULLS)
    found = list(pool.map(_strict, [names[i % len(names)] for i in range(rollouts)], range(rollouts), chunksize=4))
    _row("strict", found)
    return {"strict_abort_percent": round(100 * sum(one.aborted for one in found) / max(rollouts, 1), 1)}


def slower(pool: ProcessPoolExecutor, rollouts: int) -> dict[str, Any]:
    """One profile is stopped, the others finish."""
    hit = _worse(pool, SLOWER, rollouts, "1.3 times slower")
    return {"slow_candidate_waves": _wave(hit), "slow_devices": max(int(_number(p, "devices")) for p in hit)}


def inaccurate(pool: ProcessPoolExecutor, rollouts: int) -> dict[str, Any]:
    """The labels that the candidate's devices had."""
    hit = _worse(pool, INACCURATE, rollouts, "2 points less accurate")
    return {"samples_to_abort": median(_number(p, "labels") for p in hit), "accuracy_waves": _wave(hit)}


def upper(hits: int, n: int) -> float:
    """The upper end of the 95 % interval of a share (Clopper and Pearson 1934): its one-sided 97.5 % bound."""
    low, high = hits / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, n, middle) > 0.025 else (low, middle)
    return high


def _at_most(hits: int, n: int, p: float) -> float:
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits + 1)
    )
    return sum(map(math.exp, logs)) if 0 < p < 1 else float(p <= 0)


def _worse(pool: ProcessPoolExecutor, world: World, rollouts: int, title: str) -> list[Profile]:
    found = list(pool.map(roll_out, [world] * rollouts, [Gates()] * rollouts, range(rollouts)))
    hit = [one.profiles["pi-3"] for one in found]
    others = [p.ended for one in found for name, p in one.profiles.items() if name != "pi-3"]
    stopped = sum(p.ended == "aborted" for p in hit)
    print(f"{title}: {stopped} of {rollouts} stopped there; the others: {_counts(others)}")
    for wave in sorted({p.wave for p in hit}):
        some = [p for p in hit if p.wave == wave]
        labels, devices = median(_number(p, "labels") for p in some), median(_number(p, "devices") for p in some)
        ended = _counts(p.ended for p in some)
        print(f"  wave {wave + 1}: {len(some)} ({ended}), median of {devices:.0f} devices and {labels:,.0f} labels")
    print(f"  such as: {hit[0].judgement.reasons[0] if hit[0].judgement else ''}")
    return hit


def _equal(name: str, seed: int) -> Result:
    return roll_out(NULLS[name], Gates(), seed)


def _strict(name: str, seed: int) -> Result:
    world = replace(NULLS[name], change=0.0, waves=(10, 50), profiles=("pi",))
    return roll_out(world, parse(STRICT), 100_000 + seed)


def _row(name: str, found: list[Result]) -> None:
    aborted, suspected = sum(one.aborted for one in found), sum(map(_suspected, found))
    waiting = sum(any(p.ended == "held" for p in one.profiles.values()) for one in found) - suspected
    looks = sum(one.looks for one in found)
    print(f"{name:<16}{len(found):>10}{looks:>12,}{aborted:>10}{suspected:>12}{waiting:>10}")


def _suspected(one: Result) -> bool:
    """Held to the end for more than want of evidence."""
    held = [p.judgement for p in one.profiles.values() if p.ended == "held"]
    return any("suspicious" in reason or "broken" in reason for j in held if j for reason in j.reasons)


def _wave(hit: list[Profile]) -> int:
    return 0 if any(p.ended != "aborted" for p in hit) else max(p.wave for p in hit) + 1


def _number(profile: Profile, name: str) -> float:
    return profile.judgement.numbers[name] if profile.judgement else 0.0


def _counts(ended: Iterable[str]) -> str:
    listed = list(ended)
    return ", ".join(f"{listed.count(what)} {what}" for what in sorted(set(listed)))


if __name__ == "__main__":
    main()
