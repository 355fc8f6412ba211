"""A real agent process and a real fleet process with its broker: enrolment, rollout, and everything that can break.

Nothing is simulated here: certificates, MQTT, signatures, files and signals are those of production.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, World
from fleet_process import until

from agent.store.state import StateFile

BIG = 600_000
"""Rows of a model of 9.6 MB: 147 chunks, long enough under way to be killed in it."""


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield World(folder, stack)


def test_a_device_enrols_gets_a_model_answers_and_reports(world: World) -> None:
    world.start_fleet()
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    assert agent.infer()[0] == 503
    world.roll_out("1.0.0")
    until(lambda: agent.answers_with(one))
    until(lambda: agent.update()["phase"] == "committed")
    request = agent.infer()[1]["id"]
    assert agent.ask("POST", "/shoal/feedback", {"request": request, "label": "light-on"})[1]["correct"] is True
    until(lambda: world.device("kitchen-1")["stats"]["feedback_correct"] == 1)
    device = world.device("kitchen-1")
    assert [(s["slot"], s["digest"]) for s in device["slots"]] == [("active", one.digest)]
    assert device["status"] == "online"
    assert device["health"]["memory_total"] > 0
    assert agent.status()["security"] == []
    asked = agent.command("status", "--json")
    assert json.loads(asked.stdout)["device"] == "kitchen-1"


def test_a_token_works_once(world: World) -> None:
    world.start_fleet()
    kit = world.fleet.api("POST", "/api/v1/devices", {"device": "kitchen-1", "profile": "x86-64"})
    assert AgentProcess(world.folder / "first").enrol(kit).returncode == 0
    second = AgentProcess(world.folder / "second").enrol(kit)
    assert second.returncode == 1
    assert "make a new kit" in second.stderr
    assert not (world.folder / "second" / "identity").exists()


def test_models_answer_with_the_fleet_killed_and_every_record_arrives_once_after_it(world: World) -> None:
    """Accident: fleet and broker are killed; records pile up on the device's disk meanwhile."""
    world.start_fleet()
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    until(lambda: agent.status()["telemetry"]["delivered"] > 0)
    world.fleet.kill()
    until(lambda: not agent.status()["link"]["up"])
    produced = agent.status()["telemetry"]["produced"]
    asked = 0
    while agent.status()["telemetry"]["produced"] < produced + 4:
        assert agent.answers_with(one)
        asked += 1
    assert agent.status()["telemetry"]["waiting"] >= 4
    world.fleet.start()
    until(lambda: agent.status()["telemetry"]["waiting"] == 0, within=40)
    assert agent.stop() == 0
    telemetry = _telemetry_counts(agent)
    until(lambda: world.device("kitchen-1")["stats"]["records"] >= telemetry["delivered"])
    stats = world.device("kitchen-1")["stats"]
    # What was on its way when the agent ended may be stored without that it heard so.
    assert telemetry["delivered"] <= stats["records"] <= telemetry["produced"]
    assert telemetry["dropped"] == 0
    assert stats["requests"] >= asked
    agent.start()
    until(lambda: agent.status()["telemetry"]["waiting"] == 0)
    until(lambda: agent.status()["link"]["fleet"])


def test_an_agent_that_starts_without_any_fleet_answers_with_its_last_model(world: World) -> None:
    """Accident: power cut, and the network does not come back with the device."""
    world.start_fleet()
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    world.fleet.kill()
    agent.kill()
    agent.start()
    until(lambda: agent.answers_with(one))
    assert not agent.status()["link"]["up"]


def test_an_agent_killed_in_the_middle_of_a_fetch_goes_on_where_it_was(world: World) -> None:
    """Accident: SIGKILL while chunks come in; what was verified is not fetched again."""
    world.start_fleet(transfer_rate="4 MiB")
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    two = world.bundle("2.0.0", rows=BIG)
    partial = agent.state / "blobs" / f"{two.manifest.file('model').digest.removeprefix('sha256:')}.partial"
    world.roll_out("2.0.0")
    until(lambda: partial.exists() and partial.stat().st_blocks * 512 > 1_000_000)
    agent.kill()
    assert partial.exists()
    agent.start()
    until(lambda: agent.answers_with(one))
    until(lambda: agent.status()["updates"][0]["chunks_done"] > 10)
    until(lambda: agent.answers_with(two), within=40)
    until(lambda: agent.update()["phase"] == "committed")
    until(lambda: world.fleet.api("GET", "/api/v1/rollouts")[-1]["state"] == "done")


def test_a_device_times_a_release_that_it_does_not_run(world: World) -> None:
    world.start_fleet()
    one, two = world.bundle("1.0.0"), world.bundle("2.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    asked = {"target": two.target, "device": "kitchen-1", "rounds": 3}
    job = world.fleet.api("POST", "/api/v1/measuring", asked)["job"]
    path = f"/api/v1/measuring/{job}"
    until(lambda: world.fleet.api("GET", path)["ended"], within=60)
    measured = world.fleet.api("GET", path)
    assert (measured["state"], measured["reason"], measured["timing"]["n"]) == ("done", "", 15)
    assert measured["timing"]["runtime"].startswith("onnxruntime ")
    until(lambda: agent.status()["measured"] == [])
    assert agent.answers_with(one)
    assert [s["digest"] for s in world.device("kitchen-1")["slots"]] == [one.digest]
    until(lambda: not list((agent.state / "blobs").glob(f"{two.digest.removeprefix('sha256:')}*")))


def test_a_broken_release_is_aborted_and_the_old_model_answers(world: World) -> None:
    """Accident: scrambled weights under a right signature: the self-test on the device is what finds it."""
    world.start_fleet()
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    world.bundle("2.0.0", broken=True)
    world.roll_out("2.0.0")
    until(lambda: any(r["state"] == "aborted" for r in world.fleet.api("GET", "/api/v1/rollouts")))
    (rollout,) = (r for r in world.fleet.api("GET", "/api/v1/rollouts") if r["version"] == "2.0.0")
    assert "golden cases do not hold" in json.dumps(rollout)
    assert agent.answers_with(one)


def test_a_blob_tampered_with_on_the_fleets_disk_is_refused_before_it_is_stored(world: World) -> None:
    """Attack: one byte of the model is flipped in the fleet's own blob store after the release."""
    world.start_fleet()
    one = world.bundle("1.0.0")
    agent = world.agent("kitchen-1")
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    two = world.bundle("2.0.0")
    model = two.manifest.file("model").digest
    (stored,) = world.fleet.data.rglob(f"*{model.removeprefix('sha256:')}*")
    stored.chmod(0o600)
    with stored.open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)
        file.seek(70_000)
        file.write(bytes([byte[0] ^ 1]))
    world.roll_out("2.0.0")
    until(lambda: agent.update()["phase"] == "refused", within=30)
    assert model in agent.update()["reason"]
    until(lambda: world.device("kitchen-1")["security"] != [])
    until(lambda: not list((agent.state / "blobs").glob(f"{model.removeprefix('sha256:')}*")))
    assert agent.answers_with(one)


def test_a_second_agent_on_the_same_folder_is_told_so(world: World) -> None:
    world.start_fleet()
    agent = world.agent("kitchen-1")
    second = agent.command("run")
    assert second.returncode == 1
    assert "an agent runs here already (process" in second.stderr
    assert agent.get("/v2/health/live")[0] == 200


def test_the_cloud_tier_is_forwarded_to_and_offline_is_said_at_once(world: World) -> None:
    world.start_fleet()
    agent = world.agent("kitchen-1")
    until(lambda: agent.status()["link"]["up"])
    body = {"model": "large", "messages": [{"role": "user", "content": "hello"}]}
    status, online = agent.ask("POST", "/v1/chat/completions", body)
    assert status == 503
    assert online["error"]["code"] == "unavailable"  # the gateway's own answer: no upstream is configured
    world.fleet.kill()
    until(lambda: not agent.status()["link"]["up"])
    status, offline = agent.ask("POST", "/v1/chat/completions", body)
    assert (status, offline["error"]["type"]) == (503, "offline")


def _telemetry_counts(agent: AgentProcess) -> Any:
    state = StateFile.open(agent.state / "agent.db")
    try:
        return state.telemetry()
    finally:
        state.close()
