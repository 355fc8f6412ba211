"""`shoal rollout` against a real fleet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle
from joining import enrol, new_key

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """With a release, and a device in each of two groups."""
    with FleetProcess(tmp_path_factory.mktemp("cli") / "fleet") as process:
        initialise_trust(process).release(*tiny_bundle("1.0.0"))
        for name, group in (("north-1", "north"), ("south-1", "south")):
            kit = process.api("POST", "/api/v1/devices", {"device": name, "profile": "x86-64", "group": group})
            assert enrol(process, name, kit["token"], new_key())[0] == 200
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", "rollout", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


def test_a_rollout_to_a_group_is_started_shown_and_aborted_twice_alike(shoal: Shoal) -> None:
    started = shoal("start", "intents/kitchen", "1.0.0", "--group", "north", "--waves", "100", "--json")
    assert started.returncode == 0, started.stderr
    rollout = json.loads(started.stdout)
    assert ([d["device"] for d in rollout["devices"]], rollout["group"]) == (["north-1"], "north")
    for words in (("show", rollout["rollout"]), ("list",)):
        table = shoal(*words).stdout
        assert "intents/kitchen 1.0.0" in table
        assert "north" in table
    ended = [shoal("abort", rollout["rollout"], "--reason", "test over", "--json") for _ in range(2)]
    assert ended[0].returncode == ended[1].returncode == 0
    assert json.loads(ended[0].stdout) == json.loads(ended[1].stdout)


def test_a_group_without_devices_is_refused_in_words(shoal: Shoal) -> None:
    result = shoal("start", "intents/kitchen", "1.0.0", "--group", "nowhere")
    assert result.returncode != 0
    assert "no enrolled device of group nowhere" in " ".join(result.stderr.split())
