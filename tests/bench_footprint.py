"""`scripts/bench footprint`: what an agent without a model costs on a device: memory, and time from start to ready.

A real fleet and a real, enrolled agent process on this machine, connected over mutual TLS. PSS (proportional set size,
from `/proc/<pid>/smaps_rollup`) is read once the agent is connected. The floor, taken in turn with it in the same run,
is a Python interpreter that imports what any such agent cannot do without (asyncio, ssl, sqlite3) and does nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from fleet_process import FleetProcess, initialise_trust, until

FLOOR = "import asyncio, ssl, sqlite3, sys; print('ready', flush=True); sys.stdin.read()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="starts of agent and floor, in turn (default 7)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, FleetProcess(Path(folder) / "fleet") as fleet:
        initialise_trust(fleet)
        state = enrol(fleet, Path(folder))
        pairs = [(measure_agent(state), measure_floor()) for _ in range(rounds)]
    report([agent for agent, _ in pairs], [floor for _, floor in pairs])


def enrol(fleet: FleetProcess, folder: Path) -> Path:
    kit = folder / "bench.kit"
    kit.write_text(json.dumps(fleet.api("POST", "/api/v1/devices", {"device": "bench", "profile": "x86-64"})))
    state = folder / "agent"
    command = [sys.executable, "-P", "-m", "agent", "enrol", "--kit", str(kit), "--state", str(state)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return state


def measure_agent(state: Path) -> tuple[float, float]:
    """Seconds from start until the local API answers, and PSS in MB once it is connected."""
    begun = time.perf_counter()
    command = [sys.executable, "-P", "-m", "agent", "run", "--state", str(state)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: status(state) is not None, what="the agent")
        ready_s = time.perf_counter() - begun
        until(lambda: (status(state) or {})["link"]["fleet"], what="the agent's connection")
        return ready_s, pss_mb(child.pid)
    finally:
        child.terminate()
        child.wait(20)


def measure_floor() -> tuple[float, float]:
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-P", "-c", FLOOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin, child.stdout:
        assert child.stdout.readline() == b"ready\n"
        figures = time.perf_counter() - begun, pss_mb(child.pid)
    child.wait(20)
    return figures


def status(state: Path) -> dict[str, dict[str, bool]] | None:
    connection = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as connection.sock:
        try:
            connection.sock.connect(str(state / "agent.sock"))
            connection.request("GET", "/shoal/status")
            value: dict[str, dict[str, bool]] = json.loads(connection.getresponse().read())
        except OSError:
            return None
    return value


def pss_mb(pid: int) -> float:
    """Of the process and its children, in MB (10^6 bytes)."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in family) / 1e6


def report(agent: list[tuple[float, float]], floor: list[tuple[float, float]]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, measured, n={len(agent)}")
    print(f"{'':28}{'agent':>10}{'floor':>10}{'ratio':>8}{'worst':>10}")
    medians = []
    for i, (what, unit) in enumerate((("start to ready", "s"), ("PSS, connected, no model", "MB"))):
        ours, theirs = (statistics.median(row[i] for row in rows) for rows in (agent, floor))
        worst = max(row[i] for row in agent)
        medians.append(ours)
        print(f"{what + ', ' + unit:28}{ours:10.2f}{theirs:10.2f}{ours / theirs:8.1f}{worst:10.2f}")
    figures = {"agent_idle_pss_mb": round(medians[1], 1), "agent_ready_s": round(medians[0], 3)}
    print(json.dumps({"bench": "footprint", "figures": figures}))


if __name__ == "__main__":
    main()
