"""`shoal drift` against a real fleet: what people read of models that moved, and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drift_worlds import DIGEST, Change, Shape, World
from fleet_process import FleetProcess

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """A fleet of which two weeks are known, the last two days with a change."""
    folder = tmp_path_factory.mktemp("drift") / "fleet"
    folder.mkdir(mode=0o700)
    world = World(Shape(15, requests=60), 21, folder)
    world.live(10)
    world.change = Change("languages", 0.4)
    world.live(2)
    world.close()
    with FleetProcess(folder) as process:
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "220"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", "drift", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


def test_what_moved_is_listed_in_words_and_for_programs(shoal: Shoal) -> None:
    told = json.loads(shoal("list", "--json").stdout)
    assert {a["subject"] for a in told["alarms"]} == {"languages"}
    assert {a["against"] for a in told["alarms"]} == {"past", "reference"}
    (model,) = told["models"]
    assert (model["digest"], model["devices"]) == (DIGEST, 15)
    shown = " ".join(shoal("list").stdout.split())
    for word in ("language `fr` from", "its own four weeks", "the examples of the build", "open", "kitchen"):
        assert word in shown


def test_one_model_is_shown_with_every_comparison_by_name_or_digest(shoal: Shoal) -> None:
    told = json.loads(shoal("show", "kitchen", "--json").stdout)
    assert len(told["history"]) == 12
    assert {part["stratum"] for part in told["strata"]} == {"all", "tag:kitchen"}
    shown = " ".join(shoal("show", DIGEST[:20]).stdout.split())
    for word in ("all devices", "tag kitchen", "input length median", "confidence by cohort", "< 0.0001"):
        assert word in shown
    missing = shoal("show", "nothing")
    assert missing.returncode != 0
    assert "shoal drift list" in " ".join(missing.stderr.split())
