"""`scripts/bench simulate`: thousands of simulated devices at one fleet, over real MQTT connections (mutual TLS).

A fleet process with its own mosquitto, on this machine's disk; the devices (`shoal simulate`) are the agent's core, in
two processes beside it. A bundle of 256 KiB is rolled out to all in one wave. Then nothing new is made, what waits is
delivered, and every record that a device produced is looked for in the fleet's database.

`rollout_s`: from the rollout's start until every device committed. `telemetry_lost`: records produced, less those
merged by rule and those in the database. `broker_mb`, `fleet_mb`: the largest resident memory of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from cli.simulate import run
from cli.simulate.plan import Plan
from cli.simulate.run import Progress, Rollout, Scene
from cli.simulate.throwaway import FAMILY, MODEL, OwnFleet, publish
from wire.units import size

BUNDLE = size("256 KiB")
MEBI = 1024 * 1024
PROFILES = {"raspberry-pi-4": 0.6, "raspberry-pi-zero-2w": 0.2, "x86-64": 0.2}


def main() -> None:
    options = _options()
    with ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        memory = _in_memory(stack)
        fleet = stack.enter_context(OwnFleet(disk, {"settle_after": "1 h"}))
        plan = _plan(options)
        publish(fleet.api, disk, dict.fromkeys(plan.profiles, "onnxruntime"), versions=["1.0.0"], size=BUNDLE, seed=1)
        watched = stack.enter_context(
            Watched({"fleet": fleet.pid, "broker": fleet.api.get("/api/v1/status")["broker"]["pid"]})
        )
        wanted = Rollout(family=FAMILY, name=MODEL, version="1.0.0")
        scene = Scene(
            plan=plan, fleet=fleet.api, folder=memory, processes=2, rollout=wanted, timeout=options.minutes * 60.0
        )
        result = asyncio.run(run.simulate(scene, _say))
        stored = _records(fleet.data / "fleet.db")
        watched.look()
    _report(options, result, stored, watched)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=5000, help="how many (default 5000; 50 is a short form)")
    parser.add_argument("--minutes", type=float, default=40, help="longest time of each act (default 40)")
    parser.add_argument("--window", default="10 min", help="length of a telemetry record (default 10 min)")
    parser.add_argument("--ack-timeout", default="5 min", help="patience of the agents (default 5 min)")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    counts = {name: int(options.devices * share) for name, share in PROFILES.items()}
    counts["x86-64"] += options.devices - sum(counts.values())
    agent = {"window": options.window, "ack_timeout": options.ack_timeout, "fetch_timeout": "30 s"}
    value = {
        "profiles": {name: {"devices": count} for name, count in counts.items()},
        "join": f"{options.devices / 25:.0f} s",
        "requests": 0.1,
        "agent": {**agent, "probation_time": "20 s"},
    }
    return Plan.from_value(value, "bench")


def _in_memory(stack: ExitStack) -> Path:
    """Devices stand for as many disks: theirs are in memory. The fleet has this machine's."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="shoal-bench-", dir=place))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _say(progress: Progress) -> None:
    tally = progress.tally
    sys.stderr.write(
        f"\r{progress.act}: {tally.enrolled} enrolled, {tally.online} online, {dict(tally.phases)}, "
        f"{dict(tally.telemetry)}, busy {tally.busy:.0%}".ljust(150)
    )


def _records(database: Path) -> int:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM telemetry").fetchone()[0])
    finally:
        connection.close()


class Watched:
    """Looks at processes every second: largest resident memory in bytes, and CPU seconds."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.memory = dict.fromkeys(pids, 0)
        self.cpu = dict.fromkeys(pids, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        for name, process in self._processes.items():
            with suppress(psutil.NoSuchProcess):
                self.memory[name] = max(self.memory[name], process.memory_info().rss)
                times = process.cpu_times()
                self.cpu[name] = times.user + times.system

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.look()


def _report(options: argparse.Namespace, result: dict[str, Any], stored: int, watched: Watched) -> None:
    times, rollout, telemetry = result["times_s"], result["rollout"], result["telemetry"]
    lost = telemetry["produced"] - telemetry.get("merged", 0) - stored
    sys.stdout.write(
        f"\n{options.devices} devices on {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()}\n"
    )
    for name, seconds in times.items():
        sys.stdout.write(f"{name:<24} {seconds:8.1f} s  {options.devices / max(seconds, 0.1):8.1f} devices/s\n")
    for name, count in sorted(telemetry.items()):
        sys.stdout.write(f"records {name:<16} {count:8}\n")
    for name, memory in watched.memory.items():
        sys.stdout.write(f"{name:<24} {memory / MEBI:8.1f} MB  {watched.cpu[name]:8.1f} s of CPU\n")
    figures = {
        "devices": rollout["devices"].get("committed", 0),
        "rollout": rollout["state"],
        "enrol_s": times["enrolling"],
        "rollout_s": result["rollout_s"],
        "telemetry_produced": telemetry["produced"],
        "telemetry_lost": lost,
        "broker_mb": round(watched.memory["broker"] / MEBI, 1),
        "fleet_mb": round(watched.memory["fleet"] / MEBI, 1),
        "fleet_cpu_s": round(watched.cpu["fleet"], 1),
        "window": options.window,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
