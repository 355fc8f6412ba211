"""A real agent goes from one version to the next by a delta that a real fleet had made for it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_process import FleetProcess, until
from test_agent_meets_fleet import World
from tiny_bundle import LABELS, TinyBundle, embedding, golden, model, pipeline, tokenizer_json, write_bundle

from wire.pipeline import Labels

ROWS = 200_000


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield World(folder, stack)


def bundle(world: World, version: str, table: np.ndarray) -> TinyBundle:
    layout = world.folder / f"layout-{version}"
    files = [
        ("model", "model.onnx", model(table)),
        ("tokenizer", "tokenizer.json", tokenizer_json()),
        ("labels", "labels.json", Labels(labels=LABELS).to_bytes()),
        ("pipeline", "pipeline.json", pipeline().to_bytes()),
        ("golden", "golden.json", golden(table).to_bytes()),
    ]
    made = write_bundle(layout, files, version=version)
    world.publisher.release_layout(layout)
    return made


def moved(table: np.ndarray, share: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (table + (rng.random(table.shape) < share) * 1e-3).astype(np.float32)


def deltas(fleet: FleetProcess) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{fleet.data / 'fleet.db'}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM delta")]


@pytest.mark.slow
def test_the_second_version_comes_as_a_delta_and_the_first_as_a_whole(world: World) -> None:
    world.start_fleet()
    table = embedding("1.0.0", ROWS)
    one, two = bundle(world, "1.0.0", table), bundle(world, "2.0.0", moved(table, 0.05))
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.answers_with(one) and agent.update()["phase"] == "committed", within=60)
    assert deltas(world.fleet) == []
    until(lambda: world.device("kitchen-1")["slots"], what="the report of the first version", within=60)
    world.roll_out("2.0.0")
    until(lambda: agent.answers_with(two) and agent.update()["phase"] == "committed", within=60)
    (made,) = deltas(world.fleet)
    assert made["state"] == "ready", made["reason"]
    assert made["size"] < made["lacking"] / 5
    assert f"a delta of {made['size']} bytes over {one.manifest.file('model').digest} is fetched" in agent.log
    assert "its delta is not used" not in agent.log
    assert (agent.status()["security"], world.device("kitchen-1")["security"]) == ([], [])


@pytest.mark.slow
def test_a_fleet_without_a_compiler_sends_the_whole_file(world: World) -> None:
    """Accident: the compiler's environment is gone."""
    world.start_fleet(compiler_python="/bin/false")
    table = embedding("1.0.0", ROWS)
    one, two = bundle(world, "1.0.0", table), bundle(world, "2.0.0", moved(table, 0.05))
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.answers_with(one) and agent.update()["phase"] == "committed", within=60)
    until(lambda: world.device("kitchen-1")["slots"], what="the report of the first version", within=60)
    world.roll_out("2.0.0")
    until(lambda: agent.answers_with(two) and agent.update()["phase"] == "committed", within=60)
    (made,) = deltas(world.fleet)
    assert (made["state"], "code 1" in made["reason"]) == ("failed", True)
