"""`shoal measure` and `shoal model show` against a real fleet; what a device would answer stands in tests/fleet."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle
from joining import enrol, new_key
from rich.console import Console

from cli.measure import evidence, job_table
from cli.model import figures_table, model_table
from wire.evidence import Measurement

Shoal = Callable[..., subprocess.CompletedProcess[str]]
TARGET = "models/intents/kitchen/1.0.0/x86-64"
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """With a release and two devices."""
    with FleetProcess(tmp_path_factory.mktemp("cli") / "fleet") as process:
        initialise_trust(process).release(*tiny_bundle("1.0.0"))
        for name in ("one", "two"):
            kit = process.api("POST", "/api/v1/devices", {"device": name, "profile": "x86-64"})
            assert enrol(process, name, kit["token"], new_key())[0] == 200
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


def test_a_job_for_each_device_is_started_listed_shown_and_taken_back(shoal: Shoal) -> None:
    started = shoal("measure", "start", "--target", TARGET, "--device", "one", "--device", "two", "--json")
    assert started.returncode == 0, started.stderr
    one, two = (job["job"] for job in json.loads(started.stdout))
    listed = shoal("measure", "list").stdout
    assert one in listed
    assert two in listed
    assert "waiting" in shoal("measure", "show", one).stdout
    assert json.loads(shoal("measure", "show", "--target", TARGET, "--json").stdout) == []
    assert shoal("measure", "cancel", one).stdout == f"{one}: cancelled\n"
    assert "name either a job, or a release" in shoal("measure", "show").stderr
    assert "no evidence yet" in shoal("model", "show", TARGET).stdout
    assert shoal("model", "show", "models/x/y/1/z").returncode == 1


def figure(kind: Any, value: float) -> dict[str, Any]:
    return Measurement(
        metric="latency_p50", value=value, unit="ms", n=9, kind=kind, device="a board", runtime="onnxruntime 1"
    ).to_value()


def printed(view: Any) -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def model(*kinds: tuple[str, float]) -> dict[str, Any]:
    jobs = [{"job": f"m-{i}", "device": f"d{i}", "measurements": [figure(*kind)]} for i, kind in enumerate(kinds)]
    return {
        "target": TARGET,
        "family": "intents",
        "name": "kitchen",
        "version": "1.0.0",
        "profile": "x86-64",
        "runtime": "onnxruntime",
        "precision": "int8",
        "bytes": 1000,
        "evidence": None,
        "devices": 0,
        "devices_online": 0,
        "measured": jobs,
    }


def test_measured_and_emulated_figures_stand_apart_and_are_never_averaged() -> None:
    both = model(("measured", 4.0), ("emulated", 2.0), ("measured", 8.0))
    assert "4.0 measured on d0, 2.0 emulated on d1" in printed(model_table([both]))  # the newest of each kind
    rows = printed(figures_table(both))
    assert [rows.count(job) for job in ("m-0", "m-1", "m-2")] == [1, 1, 1]
    assert "6" not in rows.partition("latency_p50")[2]


def test_what_is_given_as_evidence_names_release_digest_and_job() -> None:
    job = {"job": "m-1", "target": TARGET, "digest": DIGEST, "measurements": [figure("measured", 4.0)]}
    (found,) = evidence([job])
    assert (found["target"], found["digest"], found["job"]) == (TARGET, DIGEST, "m-1")
    assert Measurement.from_value(found).value == 4.0


def test_a_throttled_job_is_marked() -> None:
    state = {"at": "2026-11-22T08:00:00.000Z", "throttled": True}
    names = ("p50_ms", "p50_low", "p50_high", "p99_ms", "p99_low", "p99_high", "load_ms", "confidence")
    counts = {"rounds": 1, "n": 5, "memory": 1}
    timing = {**dict.fromkeys(names, 1.0), **counts, "runtime": "r", "before": state, "after": state}
    job = {"job": "m-1", "device": "d", "target": TARGET, "state": "done", "reason": "", "timing": timing}
    assert "the clock was held down" in printed(job_table([{**job, "throttled": True, "measurements": []}]))
