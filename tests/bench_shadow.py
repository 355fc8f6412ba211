"""`scripts/bench shadow`: what a model in shadow costs the model that answers, in the slowest answers.

Three real agent processes with the same model, enrolled with a real fleet: one without a shadow, one with the default
budget (20 % of the requests, 10 % of one core), one with 100 % of both. The same client asks them in turn over their
Unix sockets; a round asks each so often that its p99 means something, and the ratios are the medians over the rounds of
the ratio to the agent without. Two loads: requests one right after the other (`busy`), and with pauses of 20 to 200 ms
between them (`paced`). Two models: one that takes about 80 us, one that takes some milliseconds.

`p99_ratio` is the worst of the four at the default budget. `compared_per_min` says that the shadows did run.
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
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quick_model
from agent_process import AgentProcess, World
from bench_local_api import binary_request
from fleet_process import until
from raw_http import RawClient, post
from tiny_bundle import TinyBundle

TARGET = 1.1
MODES: dict[str, dict[str, int]] = {"off": {}, "default": {}, "full": {"share": 100, "cpu": 100}}
Times = dict[str, list[list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="rounds over all agents, in turn (default 40)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a busy round at each (default 1)")
    parser.add_argument("--paced", type=int, default=8, help="paced rounds (default 8)")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; measured")
    figures: dict[str, float] = {}
    for name, write, request in (
        ("quick", quick_model.write, binary_request()),
        ("slow", quick_model.write_slow, slow_request()),
    ):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
            agents = deployed(folder, stack, write)
            busy = measured(agents, request, options.rounds, partial(for_seconds, request, options.seconds))
            paced = measured(agents, request, options.paced, partial(with_pauses, request))
            figures |= report(name, "busy", *busy) | report(name, "paced", *paced)
    figures["p99_ratio"] = max(v for k, v in figures.items() if k.endswith("p99_default"))
    print(
        f"{'p99_ratio':32}{figures['p99_ratio']:9.3f}   at most {TARGET}; load of the machine {os.getloadavg()[0]:.1f}"
    )
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
        if mode != "off":
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
    for _ in range(60):
        time.sleep(random.uniform(0.02, 0.2))
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


def percentile(times: list[float], q: float) -> float:
    return sorted(times)[min(len(times) - 1, int(q * len(times)))]


def report(model: str, load: str, times: Times, compared: dict[str, float]) -> dict[str, float]:
    figures = {}
    print(f"{model}, {load}: {len(times['off'])} rounds of {statistics.median(map(len, times['off'])):.0f} requests")
    print(f"  {'':10}{'p50 us':>10}{'p99 us':>10}{'p50 ratio':>11}{'p99 ratio':>11}{'compared/min':>14}")
    for mode in MODES:
        row = []
        for q in (0.5, 0.99):
            mine, off = ([percentile(one, q) for one in times[m]] for m in (mode, "off"))
            ratio = statistics.median(a / b for a, b in zip(mine, off, strict=True))
            row.append((statistics.median(mine) * 1e6, ratio))
            if mode != "off":
                figures[f"{model}_{load}_p{q * 100:.0f}_{mode}"] = ratio
        (p50, r50), (p99, r99) = row
        print(f"  {mode:10}{p50:10.0f}{p99:10.0f}{r50:11.3f}{r99:11.3f}{compared[mode]:14.0f}")
        if mode != "off":
            figures[f"{model}_{load}_compared_per_min_{mode}"] = compared[mode]
    return figures


if __name__ == "__main__":
    main()
