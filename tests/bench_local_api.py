"""`scripts/bench local-api`: what the agent's local API adds to the model's own time, memory and start.

In one run, in turn with each other: the floor (a process that calls the same file in the same runtime, and nothing
else), a real agent process as shipped (enrolled, connected to a real fleet over mutual TLS, telemetry and metrics on)
over its Unix socket with binary and with JSON tensors and over TCP with its token, and MLServer where it can be
installed. The same client asks all of them. Ratios are the median over the rounds of the ratio of medians; a round asks
each for some milliseconds only, so that what else runs on the machine meets all of them.

`bare` is a process of the same libraries (`bare_server.py`: `asyncio.Protocol`, httptools, the codec) that does nothing
of what an agent does: what stands between it and the floor is theirs and the machine's, what stands between it and the
agent is ours.

`floor, paced` is that process with a pause of 0.2 ms before each call, as a client makes one: the same model takes
longer when it is not called in a loop, whoever calls it. It is shown; the ratios are to the floor without pauses.

`p50_ratio_*`: one request at a time. `cpu_ratio_c8`: CPU of the agent for a request with binary tensors, eight under
way. `bare_*`: the same of the bare one.
`extra_mb`: PSS over the floor's, both running. `ready_s`: from the start of the process until the model is ready.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlserver_peer
import numpy as np
import psutil
import quick_model
from agent_process import AgentProcess, World
from fleet_process import until
from raw_http import Address, RawClient, load, post

TARGETS = {"p50_ratio_binary": 2.0, "p50_ratio_json": 2.7, "cpu_ratio_c8": 1.8, "extra_mb": 30.0, "ready_s": 1.5}
AT_ONCE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=120, help="rounds over all of them, in turn (default 120)")
    parser.add_argument("--requests", type=int, default=40, help="requests of each in a round (default 40)")
    parser.add_argument("--starts", type=int, default=5, help="starts of the agent (default 5)")
    parser.add_argument("--no-peer", action="store_true", help="without MLServer")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        agent, bundle = deployed(folder, stack)
        model = bundle.blob(bundle.manifest.file("model").digest)
        floor = Floor(model, stack)
        figures = {"ready_s": ready_s(agent, options.starts), "extra_mb": pss_mb(agent.pid) - pss_mb(floor.pid)}
        asked, pids = doors(agent), {"agent, binary": agent.pid}
        asked |= bare(folder, model, stack, pids)
        peer = None if options.no_peer else mlserver_peer.start(folder, model, stack)
        if peer is not None:
            asked["MLServer, JSON over TCP"] = (peer, post("/v2/models/kitchen/infer", json_request(), _JSON))
        times, cpu = measured(floor, pids, asked, options.rounds, options.requests)
    report(times, cpu, figures)


def deployed(folder: Path, stack: ExitStack) -> tuple[AgentProcess, Any]:
    """A fleet, and an agent that runs the model that was rolled out to it."""
    world = World(folder, stack)
    world.start_fleet()
    bundle = quick_model.write(folder / "layout", "1.0.0")
    world.publisher.release_layout(folder / "layout")
    agent = world.agent("bench", SHOAL_AGENT_TCP="127.0.0.1:0", SHOAL_AGENT_WINDOW="5 s")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed", what="the model on the device", within=60)
    return agent, bundle


class Floor:
    """The process of `floor_process.py`."""

    def __init__(self, model: Path, stack: ExitStack) -> None:
        program = Path(__file__).with_name("floor_process.py")
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(program), str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self._end)
        self.pid = self._child.pid
        self._told()

    def ask(self, what: str, n: int) -> Any:
        assert self._child.stdin is not None
        self._child.stdin.write(f"{what} {n}\n")
        self._child.stdin.flush()
        return self._told()

    def _told(self) -> Any:
        assert self._child.stdout is not None
        return json.loads(self._child.stdout.readline())

    def _end(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(20)
        self._child.stdout.close()


def ready_s(agent: AgentProcess, starts: int) -> float:
    """Median seconds from the start of the process until its model is ready."""
    found = []
    for _ in range(starts):
        agent.stop()
        begun = time.perf_counter()
        agent.start()
        until(lambda: agent.get("/v2/health/ready")[0] == 200, what="the model")
        found.append(time.perf_counter() - begun)
    until(lambda: agent.status()["link"]["fleet"], what="the agent's connection")
    RawClient(agent.state / "agent.sock").time(binary_request(), 500)  # as it is once it has served
    return statistics.median(found)


def pss_mb(pid: int) -> float:
    """Proportional set size in MB (10^6 bytes)."""
    return float(psutil.Process(pid).memory_full_info().pss) / 1e6


_JSON = {"content-type": "application/json"}


def doors(agent: AgentProcess) -> dict[str, tuple[Address, bytes]]:
    """Where the agent is asked, and the bytes of a request."""
    path = "/v2/models/kitchen/infer"
    host, _, port = agent.tcp_address().rpartition(":")
    token = {"authorization": f"Bearer {agent.token()}"}
    return {
        "agent, binary": (agent.state / "agent.sock", binary_request()),
        "agent, JSON": (agent.state / "agent.sock", post(path, json_request(), _JSON)),
        "agent, binary over TCP": ((host, int(port)), binary_request(token)),
    }


def bare(folder: Path, model: Path, stack: ExitStack, pids: dict[str, int]) -> dict[str, tuple[Address, bytes]]:
    """The server of `bare_server.py`, and the same requests for it; its process is added to `pids`."""
    path = folder / "bare.sock"
    program = Path(__file__).with_name("bare_server.py")
    child = subprocess.Popen([sys.executable, "-P", str(program), str(model), str(path)], stdout=subprocess.PIPE)
    stack.callback(child.wait)
    stack.callback(child.kill)
    assert child.stdout is not None
    stack.callback(child.stdout.close)
    assert child.stdout.readline() == b"listening\n"
    pids["bare, binary"] = child.pid
    return {
        "bare, binary": (path, binary_request()),
        "bare, JSON": (path, post("/v2/models/kitchen/infer", json_request(), _JSON)),
    }


def binary_request(headers: Mapping[str, str] | None = None) -> bytes:
    tensors = quick_model.frame(1)
    inputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": list(values.shape),
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    fields = {"inference-header-content-length": str(len(head)), **(headers or {})}
    return post("/v2/models/kitchen/infer", head + b"".join(v.tobytes() for v in tensors.values()), fields)


def json_request() -> bytes:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.reshape(-1).tolist()}
        for name, values in quick_model.frame(1).items()
    ]
    return json.dumps({"inputs": inputs}).encode()


Times = dict[str, list[float]]


def measured(
    floor: Floor, pids: Mapping[str, int], asked: Mapping[str, tuple[Address, bytes]], rounds: int, requests: int
) -> tuple[Times, Times]:
    """Of each, the median seconds in each round; CPU seconds of a call in each round, at concurrency 8, of `pids`."""
    times: Times = {"floor": [], "floor, paced": [], **{name: [] for name in asked}}
    cpu: Times = {"floor": [], **{name: [] for name in pids}}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(RawClient(address)) for name, (address, _) in asked.items()}
        for number in range(rounds + 1):
            kept = number > 0  # the first round warms up
            found = {"floor": floor.ask("time", requests), "floor, paced": floor.ask("paced", requests)}
            # In another order each time: who comes after whom finds other things in the caches.
            for name in random.sample(list(asked), len(asked)):
                found[name] = clients[name].time(asked[name][1], requests)
            if kept:
                for name, values in found.items():
                    times[name].append(statistics.median(values))
        for _ in range(max(3, rounds // 6)):
            cpu["floor"].append(floor.ask("cpu", 10 * requests) / (10 * requests))
            for name, pid in pids.items():
                before = cpu_s(pid)
                load(*asked[name], connections=AT_ONCE, total=10 * requests)
                cpu[name].append((cpu_s(pid) - before) / (10 * requests))
    return times, cpu


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, that a process has taken."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def ratio(times: Times, name: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times["floor"], strict=True))


def report(times: Times, cpu: Times, figures: dict[str, float]) -> None:
    rounds = len(times["floor"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__},")
    print(f"measured, {rounds} rounds; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'p50, one request at a time':32}{'us':>9}{'ratio':>8}")
    for name, values in times.items():
        print(f"{name:32}{statistics.median(values) * 1e6:9.0f}{ratio(times, name):8.2f}")
    print(f"{'CPU of a request, 8 at a time':32}{'us':>9}{'ratio':>8}")
    for name, values in cpu.items():
        print(f"{name:32}{statistics.median(values) * 1e6:9.0f}{ratio(cpu, name):8.2f}")
    figures |= {
        "p50_ratio_binary": ratio(times, "agent, binary"),
        "p50_ratio_json": ratio(times, "agent, JSON"),
        "cpu_ratio_c8": ratio(cpu, "agent, binary"),
        "paced_floor_ratio": ratio(times, "floor, paced"),
        "bare_p50_ratio_binary": ratio(times, "bare, binary"),
        "bare_p50_ratio_json": ratio(times, "bare, JSON"),
        "bare_cpu_ratio_c8": ratio(cpu, "bare, binary"),
    }
    for name, target in TARGETS.items():
        print(f"{name:32}{figures[name]:9.2f}   at most {target}")
    if "MLServer, JSON over TCP" in times:
        figures["mlserver_p50_ratio"] = ratio(times, "MLServer, JSON over TCP")
    print(json.dumps({"bench": "local-api", "figures": {name: round(value, 3) for name, value in figures.items()}}))


if __name__ == "__main__":
    main()
