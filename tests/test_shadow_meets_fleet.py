"""A model in shadow on a real agent process beside a real fleet: begun by the API, heard in telemetry, promoted."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_process import AgentProcess, World
from fleet_process import until
from sqlalchemy import create_engine, text

from wire.messages import InferenceStats

pytestmark = pytest.mark.timeout(600)
PATIENCE = 150
"""Seconds: a model in shadow has what the others leave of the machine, and that may be little beside other tests."""


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield World(folder, stack)


def shadow(agent: AgentProcess) -> Any:
    return next(iter(agent.status().get("shadows", [])), {"phase": "", "requests": {}})


def begin(world: World, target: str) -> None:
    world.fleet.api("POST", "/api/v1/devices/kitchen-1/shadows", {"target": target, "share": 100, "cpu": 50})


def heard(world: World, digest: str) -> list[InferenceStats]:
    """What the fleet has of a model in shadow, window by window."""
    engine = create_engine(f"sqlite:///{world.folder / 'fleet' / 'fleet.db'}")
    with engine.connect() as connection:
        records = [json.loads(row[0]) for row in connection.execute(text("SELECT record FROM telemetry"))]
    engine.dispose()
    stats = [InferenceStats.from_value(one) for record in records for one in record.get("inference", [])]
    return [one for one in stats if one.shadow and one.digest == digest]


def test_a_candidate_runs_in_shadow_over_kills_and_is_promoted_without_a_chunk(world: World) -> None:
    """Accident: SIGKILL of the agent while a model runs in shadow; its process ends with it."""
    world.start_fleet()
    one, two = world.bundle("1.0.0"), world.bundle("2.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    begin(world, two.target)
    until(lambda: shadow(agent)["phase"] == "running", within=PATIENCE)
    assert {(s["slot"], s["digest"]) for s in agent.status()["slots"]} == {
        ("active", one.digest),
        ("candidate", two.digest),
    }
    children = psutil.Process(agent.pid).children()
    assert children
    agent.kill()
    assert psutil.wait_procs(children, 10)[1] == []
    agent.start()
    until(lambda: shadow(agent)["phase"] == "running", within=PATIENCE)

    def agrees() -> bool:
        assert agent.answers_with(one)
        return bool(shadow(agent)["requests"].get("agreed", 0) >= 10)

    until(agrees, within=PATIENCE)
    until(lambda: sum(one.agreed for one in heard(world, two.digest)) >= 10)
    assert all(one.agreed == one.compared == one.requests for one in heard(world, two.digest))
    until(lambda: world.device("kitchen-1")["shadows"][0]["phase"] == "running")
    assert world.device("kitchen-1")["health"]["golden"][one.digest] is True
    assert "answers agree" in agent.command("status").stdout
    page = agent.command("status", "--json").stdout
    assert json.loads(page)["shadows"][0]["digest"] == two.digest

    sent = transferred(world)
    assert sent["published"] > 0
    world.roll_out("2.0.0")
    until(lambda: agent.answers_with(two) and agent.update()["phase"] == "committed", within=PATIENCE)
    assert transferred(world) == sent
    assert agent.status()["shadows"] == []
    until(lambda: world.device("kitchen-1")["shadows"] == [])
    until(lambda: not psutil.Process(agent.pid).children())


def transferred(world: World) -> Any:
    return world.fleet.api("GET", "/api/v1/status")["transfer"]
