"""Many simulated devices at a real fleet, over real MQTT: what they do and say is what real ones would.

The fleet is `shoal simulate`'s own: a process on free ports of loopback, with keys made here.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.errors import BadInput
from cli.simulate import run
from cli.simulate.plan import Plan
from cli.simulate.run import Rollout, Scene
from cli.simulate.throwaway import FAMILY, MODEL, OwnFleet, publish

FAST = {
    "window": "1 s",
    "ack_timeout": "5 s",
    "fetch_timeout": "1 s",
    "probation_time": "1 s",
}
TWO_PROFILES = {"x86-64": {"devices": 12}, "raspberry-pi-4": {"devices": 8, "latency": "40 ms", "delay": "20 ms"}}


def plan_of(profiles: dict[str, Any], **settings: Any) -> Plan:
    return Plan.from_value({"profiles": profiles, "join": "1 s", "agent": FAST, "selftest": "1 s", **settings}, "test")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnFleet]:
    with OwnFleet(tmp_path, {"gather": "50 ms"}) as fleet:
        yield fleet


def play(own: OwnFleet, folder: Path, plan: Plan, rollout: Rollout | None = None, **more: float) -> dict[str, Any]:
    (folder / "devices").mkdir()
    scene = Scene(
        plan=plan, fleet=own.api, folder=folder / "devices", processes=2, rollout=rollout, timeout=180.0, **more
    )
    return asyncio.run(run.simulate(scene, lambda _progress: None))


def release(own: OwnFleet, folder: Path, plan: Plan) -> Rollout:
    publish(own.api, folder, dict.fromkeys(plan.profiles, "onnxruntime"), versions=["1.0.0"], size=600_000, seed=1)
    return Rollout(family=FAMILY, name=MODEL, version="1.0.0", waves="30,100")


def rows(own: OwnFleet, query: str) -> list[Any]:
    database = sqlite3.connect(own.data / "fleet.db")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rollout_completes_through_loss_reboots_and_late_devices_and_no_record_is_lost(
    own: OwnFleet, tmp_path: Path
) -> None:
    """Accidents: chunks and answers are lost, devices start again in the middle of their update, some come late."""
    befalls = {"late": 0.3, "late_after": "3 s", "loss": 0.2, "reboots": 400, "reboot_for": "2 s", "calm_after": "15 s"}
    plan = plan_of(TWO_PROFILES, requests=2.0, **befalls)
    late = sum(device.late for device in plan.devices())
    result = play(own, tmp_path, plan, release(own, tmp_path, plan))
    assert late >= 2
    assert result["messages_lost"] > 0
    assert result["reboots_in_update"] > 0
    assert result["rollout"]["state"] == "done"
    assert result["rollout"]["devices"] == {"committed": 20}
    telemetry = result["telemetry"]
    assert telemetry["produced"] == telemetry["stored"] > 20
    assert result["telemetry_lost"] == 0
    assert rows(own, "SELECT COUNT(*) FROM telemetry") == [(telemetry["stored"],)]
    assert psutil.Process().children() == [psutil.Process(own.pid)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_waits_is_delivered_though_no_answer_came_before(own: OwnFleet, tmp_path: Path) -> None:
    """Attack: at the end of a play a device had lost so many answers in a row that it waits for minutes."""
    plan = plan_of({"x86-64": {"devices": 2}}, requests=2.0, loss=1.0)
    release(own, tmp_path, plan)
    result = play(own, tmp_path, plan, seconds=8.0)
    assert result["messages_lost"] > 0
    assert "waiting" not in result["telemetry"]
    assert result["telemetry"]["produced"] == result["telemetry"]["stored"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_simulated_devices_say_so_measure_by_their_class_and_leave_nothing_but_a_word_to_remove_them(
    own: OwnFleet, tmp_path: Path
) -> None:
    plan = plan_of({"x86-64": {"devices": 2}, "raspberry-pi-4": {"devices": 2, "latency": "900 ms"}}, requests=5.0)
    result = play(own, tmp_path, plan, release(own, tmp_path, plan))
    assert result["requests"]["answered"] > 0
    own.api.post("/api/v1/devices", {"device": "sim-real", "profile": "x86-64", "group": "kitchen"})
    devices = {d["device"]: d for d in own.api.get("/api/v1/devices") if d["device"] != "sim-real"}
    assert {(d["hardware"], d["emulated"], d["group"]) for d in devices.values()} == {("simulated", True, "simulated")}
    medians = {name: [] for name in plan.profiles}
    for device in devices.values():
        if device["stats"]["requests"]:
            medians[device["profile"]].append(device["stats"]["latency_p50_ms"])
    assert max(medians["x86-64"]) < 100 < min(medians["raspberry-pi-4"])
    assert run.remove(own.api, plan) == 4
    assert run.remove(own.api, plan) == 0
    states = dict(rows(own, "SELECT id, state FROM device"))
    assert states.pop("sim-real") == "new"
    assert set(states.values()) == {"retired"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_devices_that_fail_by_plan_stop_the_rollout(own: OwnFleet, tmp_path: Path) -> None:
    plan = plan_of({"x86-64": {"devices": 4}}, failing=1.0)
    result = play(own, tmp_path, plan, release(own, tmp_path, plan))
    assert result["rollout"]["state"] == "aborted"
    assert all("by plan" in reason for reason in result["rollout"]["reasons"])
    assert result["telemetry_lost"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fleet_that_limits_enrolment_is_asked_again_until_all_are_in(tmp_path: Path) -> None:
    plan = plan_of({"x86-64": {"devices": 8}})
    with OwnFleet(tmp_path, {"http_rate": "5"}) as own:  # half an enrolment a second, after the first five
        release(own, tmp_path, plan)
        result = play(own, tmp_path, plan, seconds=1.0)
    assert any(reason.startswith("put off") for reason in result["reasons"])
    assert result["rollout"] is None
    assert result["telemetry_lost"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_plays_prints_figures_and_leaves_no_folder_and_no_process() -> None:
    words = ["--own", "--devices", "3", "--set", "join=1 s", "--set", f"agent={_inline(FAST)}", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli", "simulate", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["rollout"]["devices"] == {"committed": 3}
    mark = f"shoal-sim-{process.pid}-"
    places = [place for place in (Path("/dev/shm"), Path(tempfile.gettempdir())) if place.is_dir()]
    assert not [path for place in places for path in place.iterdir() if mark in path.name]
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(mark in w for w in p.info["cmdline"] or ())]


def _inline(table: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name} = "{value}"' for name, value in table.items()) + "}"


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_devices_and_another_one_others() -> None:
    shares = {"late": 0.3, "slow": 0.5, "wrong_clock": 0.1}
    one, again, other = (plan_of(TWO_PROFILES, seed=seed, **shares).devices() for seed in (1, 1, 2))
    assert one == again
    assert [(d.profile, d.late, d.latency) for d in one] != [(d.profile, d.late, d.latency) for d in other]
    assert len({d.device for d in (*one, *other)}) == 40


def test_a_plan_goes_to_the_workers_as_it_was_written() -> None:
    plan = plan_of(TWO_PROFILES, loss=0.1, slow=0.2, slow_by=3, cut_for="90 s")
    assert Plan.from_value(json.loads(json.dumps(plan.to_value())), "job") == plan


def test_devices_join_over_the_time_of_the_plan() -> None:
    plan = plan_of({"x86-64": {"devices": 10}}, join="20 s")
    assert [device.joins for device in plan.devices()] == [2.0 * i for i in range(10)]


def test_a_slow_device_is_slower_by_the_factor_of_the_plan() -> None:
    plan = plan_of({"x86-64": {"devices": 400, "latency": "10 ms"}}, slow=0.25, slow_by=7)
    latencies = [device.latency for device in plan.devices()]
    assert set(latencies) == {0.01, 0.07}
    assert 60 < latencies.count(0.07) < 140


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss = 2", "loss: expected a number from 0 to 1"),
        ('join = "5"\n[profiles.x86-64]\ndevices = 1', "join"),
        ("[profiles.x86-64]\ndevices = -1", "devices: expected a whole number"),
        ("[profiles.x86-64]\nlatancy = '1 s'", "no setting 'latancy'"),
        ("wrong = 1", "no setting 'wrong'"),
        ("seed = 1", "0 devices"),
        ("loss =", "not TOML"),
    ],
)
def test_a_wrong_plan_is_told_with_its_place(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Plan.from_toml(text, "plan.toml")
