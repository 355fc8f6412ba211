"""`scripts/bench shadow`: what a model in shadow costs the model that answers, in the slowest answers.

Four real agent processes with the same model, enrolled with a real fleet: two without a shadow (`off`, `same`), one
with the default budget (20 % of the requests, 10 % of one core), one with 100 % of both. The same client asks them in
turn over their Unix sockets, never two at a time. Two loads: requests one right after the other (`busy`), and requests
with pauses of 2 to 12 ms (`paced`). Two models: one that takes about 80 us, one that takes some milliseconds. A ratio
is that of p99 to the p99 of `off`, in two ways: by rounds, the median of the ratios of rounds of the same minute, which
a bad second of the machine does not change; and over all, of the requests of all rounds together, which it decides.
Each has a 95 % interval: rounds drawn again, with replacement.

`p99_ratio` is the worst of the four loads by rounds at the default budget, with its interval; `p99_ratio_same` that of
an agent that differs in nothing: as far as that one is from 1, the machine was too noisy to tell. `p99_over_all` and
`p99_over_all_same` are the same over all. `compared_per_min` says that the shadows did run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import quick_model
from agent_process import AgentProcess, World
from bench_local_api import binary_request
from fleet_process import until
from raw_http import RawClient, post
from tiny_bundle import TinyBundle

TARGET = 1.1
MODES: dict[str, dict[str, int]] = {"off": {}, "same": {}, "default": {}, "full": {"share": 100, "cpu": 100}}
SHADOWED = ("default", "full")
DRAWS = 400
"""For an interval."""
Times = dict[str, list[list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="rounds over all agents, in turn (default 30)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a busy round at each (default 1)")
    parser.add_argument("--paced", type=int, default=120, help="paced rounds (default 120)")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="only this one (default: both)")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; measured")
    figures: dict[str, float] = {}
    worst: dict[str, Ratio] = {}
    for name in options.model or MODELS:
        write, request = MODELS[name][0], MODELS[name][1]()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
            agents = deployed(folder, stack, write)
            busy = measured(agents, request, options.rounds, partial(for_seconds, request, options.seconds))
            paced = measured(agents, request, options.paced, partial(with_pauses, request))
            for load, (times, compared) in (("busy", busy), ("paced", paced)):
                figures |= report(name, load, times, compared, worst)
    for way in WAYS:
        for mode, name in (("default", f"p99_{way}"), ("same", f"p99_{way}_same")):
            found = worst[f"{way} {mode}"]
            figures |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        words = f"at most {TARGET}; without any shadow {worst[f'{way} same']}"
        print(f"p99_{way} {worst[f'{way} default']}, {words}")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    print(json.dumps({"bench": "shadow", "figures": {name: round(value, 3) for name, value in figures.items()}}))


def deployed(folder: Path, stack: ExitStack, write: Any) -> dict[str, AgentProcess]:
    """One agent for each mode, with version one active, and version two in shadow where there is one."""
    world = World(folder, stack)
    world.start_fleet()
    released: dict[str, TinyBundle] = {}
    for version in ("1.0.0", "2.0.0"):
        released[version] = write(folder / version, version)
        world.publisher.release_layout(folder / version)
    agents = {mode: world.agent(mode, SHOAL_AGENT_WINDOW="5 s") for mode in MODES}
    world.roll_out("1.0.0")
    for mode, agent in agents.items():
        until(lambda agent=agent: agent.update()["phase"] == "committed", what="the model on the device", within=120)
        if mode in SHADOWED:
            body = {"target": released["2.0.0"].target, **MODES[mode]}
            world.fleet.api("POST", f"/api/v1/devices/{mode}/shadows", body)
            until(lambda agent=agent: shadow(agent)["phase"] == "running", what="the shadow", within=300)
    return agents


def shadow(agent: AgentProcess) -> Any:
    return next(iter(agent.status().get("shadows", [])), {"phase": "", "requests": {}})


def slow_request() -> bytes:
    row = np.ones((1, 256), np.float32)
    tensor = {"name": "row", "datatype": "FP32", "shape": [1, 256], "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    fields = {"inference-header-content-length": str(len(head))}
    return post("/v2/models/kitchen/infer", head + row.tobytes(), fields)


def for_seconds(request: bytes, seconds: float, client: RawClient) -> list[float]:
    times: list[float] = []
    until_then = time.perf_counter() + seconds
    while time.perf_counter() < until_then:
        times += client.time(request, 20)
    return times


def with_pauses(request: bytes, client: RawClient) -> list[float]:
    times = []
    for _ in range(160):
        time.sleep(random.uniform(0.002, 0.012))
        times += client.time(request, 1)
    return times


def measured(agents: dict[str, AgentProcess], request: bytes, rounds: int, ask: Any) -> tuple[Times, dict[str, float]]:
    """Seconds of each request, by mode and round; requests a minute that were compared."""
    times: Times = {mode: [] for mode in MODES}
    taken = dict.fromkeys(MODES, 0.0)
    before = {mode: shadow(agent)["requests"].get("compared", 0) for mode, agent in agents.items()}
    with ExitStack() as stack:
        clients = {mode: stack.enter_context(RawClient(a.state / "agent.sock")) for mode, a in agents.items()}
        for client in clients.values():
            client.time(request, 200)
        order = list(MODES)
        for _ in range(rounds):
            random.shuffle(order)
            for mode in order:
                began = time.perf_counter()
                times[mode].append(ask(clients[mode]))
                time.sleep(0.4)  # what waits there is run meanwhile, and not in the next one's round
                taken[mode] += time.perf_counter() - began
    after = {mode: shadow(agent)["requests"].get("compared", 0) for mode, agent in agents.items()}
    return times, {mode: (after[mode] - before[mode]) / taken[mode] * 60 for mode in MODES}


def percentile(times: Iterable[float], q: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def of_rounds(mine: list[list[float]], off: list[list[float]], q: float) -> float:
    """Each round is held against the one of the same minute: what else the machine does then is in both."""
    return statistics.median(percentile(a, q) / percentile(b, q) for a, b in zip(mine, off, strict=True))


def of_all(mine: list[list[float]], off: list[list[float]], q: float) -> float:
    return percentile(chain(*mine), q) / percentile(chain(*off), q)


class Ratio(NamedTuple):
    """With its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


def drawn(mine: list[list[float]], off: list[list[float]], q: float, ratio: Any) -> Ratio:
    """The ratio, and between what it lies when rounds are drawn again, each with the one of the same minute."""
    chance, n = random.Random(7), len(mine)
    draws = [[chance.randrange(n) for _ in range(n)] for _ in range(DRAWS)]
    found = sorted(ratio([mine[i] for i in draw], [off[i] for i in draw], q) for draw in draws)
    return Ratio(ratio(mine, off, q), found[DRAWS // 40], found[-1 - DRAWS // 40])


def report(
    model: str, load: str, times: Times, compared: dict[str, float], worst: dict[str, Ratio]
) -> dict[str, float]:
    """A table of one model and load; `worst` keeps the largest ratio of p99 by way and mode."""
    figures = {}
    print(f"{model}, {load}: {len(times['off'])} rounds of {statistics.median(map(len, times['off'])):.0f} requests")
    heads = f"{'p50 ratio':>11}{'p99 ratio by rounds':>22}{'p99 ratio over all':>22}{'compared/min':>14}"
    print(f"  {'':10}{'p50 us':>10}{'p99 us':>10}{heads}")
    for mode in MODES:
        us = [percentile(chain(*times[mode]), q) * 1e6 for q in (0.5, 0.99)]
        middle = of_rounds(times[mode], times["off"], 0.5)
        slow = {way: drawn(times[mode], times["off"], 0.99, ratio) for way, ratio in WAYS.items()}
        shown = "".join(f"{ratio!s:>22}" for ratio in slow.values())
        print(f"  {mode:10}{us[0]:10.0f}{us[1]:10.0f}{middle:11.3f}{shown}{compared[mode]:14.0f}")
        if mode != "off":
            figures[f"{model}_{load}_p50_{mode}"] = middle
            for way, found in slow.items():
                figures[f"{model}_{load}_p99_{way}_{mode}"] = found.value
                worst[f"{way} {mode}"] = max(found, worst.get(f"{way} {mode}", found))
        if mode in SHADOWED:
            figures[f"{model}_{load}_compared_per_min_{mode}"] = compared[mode]
    return figures


WAYS: dict[str, Any] = {"ratio": of_rounds, "over_all": of_all}
MODELS: dict[str, tuple[Any, Any]] = {
    "quick": (quick_model.write, binary_request),
    "slow": (quick_model.write_slow, slow_request),
}
"""How its bundle is written, and what asks it."""

if __name__ == "__main__":
    main()
