"""Rollouts through a real fleet, a real broker and devices with real keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, tiny_bundle, until

from wire import topics
from wire.messages import SlotReport, UpdateReport


def start(fleet: FleetProcess, version: str, waves: list[int], **headers: str) -> Any:
    body = {"family": "intents", "name": "kitchen", "version": version, "waves": waves}
    return fleet.api("POST", "/api/v1/rollouts", body, headers=headers)


def answer(device: Any, desired: Any, phase: str, reason: str = "") -> None:
    (model,) = desired.models
    update = UpdateReport(target=model.target, digest=model.digest, rollout=model.rollout, phase=phase, reason=reason)
    slots = (SlotReport(model="kitchen", slot="active", target=model.target, digest=model.digest),)
    device.report(update, slots=slots if phase == "committed" else (), desired_seq=desired.seq)


def until_rollout(fleet: FleetProcess, rollout: str, **expected: Any) -> Any:
    def reached() -> Any:
        shown = fleet.api("GET", f"/api/v1/rollouts/{rollout}")
        return shown if all(shown[k] == v for k, v in expected.items()) else None

    return until(reached, what=f"rollout {rollout} {expected}")


def test_a_rollout_goes_wave_by_wave_over_a_kill_of_the_fleet_and_a_bad_one_comes_back(
    tmp_path: Path, enrolling: Any
) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        publisher = initialise_trust(fleet)
        good, _ = publisher.release(*tiny_bundle("1.0.0")), publisher.release(*tiny_bundle("2.0.0"))
        devices = {name: new_device(name) for name in ("a", "b", "c")}
        for device in devices.values():
            device.connect()
            assert device.next_desired(seq=1).models == ()

        rollout = start(fleet, "1.0.0", [30, 100])
        (first,) = [d["device"] for d in rollout["devices"] if d["state"] == "sent"]
        desired = devices[first].next_desired(seq=2)
        assert (desired.models[0].digest, desired.models[0].rollout) == (good.digest, rollout["rollout"])

        fleet.kill()
        fleet.start()
        again = devices[first].next_desired(seq=2)
        assert (again.seq, again.models) == (desired.seq, desired.models)
        answer(devices[first], desired, "committed")
        until_rollout(fleet, rollout["rollout"], wave=1, state="running")
        others = [d for name, d in devices.items() if name != first]
        for device in others:
            answer(device, device.next_desired(seq=2), "committed")
        until_rollout(fleet, rollout["rollout"], state="done", verdict="PROCEED")
        assert {m["version"]: m["devices"] for m in fleet.api("GET", "/api/v1/models")} == {"1.0.0": 3, "2.0.0": 0}

        bad = start(fleet, "2.0.0", [100])
        for device in devices.values():
            answer(device, device.next_desired(seq=3), "failed", "golden set: case 2 is 0.9 away")
        ended = until_rollout(fleet, bad["rollout"], state="aborted", verdict="ABORT")
        assert {d["state"] for d in ended["devices"]} == {"returned"}
        assert all("golden set" in d["reason"] for d in ended["devices"])
        for device in devices.values():
            back = device.next_desired(seq=4)
            assert [m.digest for m in back.models] == [good.digest]


def test_a_silent_device_is_a_hold_with_its_name_and_a_person_can_abort(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    publisher.release(*tiny_bundle("3.0.0"))
    device = new_device("silent")
    device.connect()
    rollout = start(fleet, "3.0.0", [100])
    shown = until_rollout(fleet, rollout["rollout"], verdict="HOLD")
    assert "silent" in shown["reasons"][0]
    with pytest.raises(ApiError, match="is running") as second:
        start(fleet, "3.0.0", [100])
    assert second.value.status == 409
    ended = fleet.api("POST", f"/api/v1/rollouts/{rollout['rollout']}/abort", {"reason": "not today"})
    assert (ended["state"], ended["reasons"]) == ("aborted", ["not today"])
    assert device.next_desired(seq=3).models == ()
    with pytest.raises(ApiError, match="nothing to abort"):
        fleet.api("POST", f"/api/v1/rollouts/{rollout['rollout']}/abort", {"reason": "again"})


def test_a_repeated_request_starts_one_rollout(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    publisher.release(*tiny_bundle("4.0.0"))
    new_device("repeated")
    headers = {"Idempotency-Key": "k1"}
    first = start(fleet, "4.0.0", [100], **headers)
    assert start(fleet, "4.0.0", [100], **headers)["rollout"] == first["rollout"]
    with pytest.raises(ApiError, match="another rollout"):
        start(fleet, "4.0.0", [50, 100], **headers)
    fleet.api("POST", f"/api/v1/rollouts/{first['rollout']}/abort", {"reason": "test over"})


def test_a_version_without_a_release_is_not_found(fleet: FleetProcess, publisher: Publisher) -> None:
    with pytest.raises(ApiError, match="no release is listed") as error:
        start(fleet, "9.9.9", [100])
    assert error.value.status == 404


def test_a_forged_report_is_noted_and_moves_nothing(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    """Attack: who may write to a device's topic, but lacks its key, reports success."""
    publisher.release(*tiny_bundle("5.0.0"))
    device, other = new_device("victim"), new_device("forger")
    device.connect()
    rollout = start(fleet, "5.0.0", [100])
    desired = device.next_desired(seq=2)
    honest, device.signer = device.signer, other.signer
    answer(device, desired, "committed")
    until(lambda: device.view()["security"], what="a security event")
    assert "not signed by the key" in device.view()["security"][-1]["reason"]
    device.signer = honest
    shown = fleet.api("GET", f"/api/v1/rollouts/{rollout['rollout']}")
    assert {d["device"]: d["state"] for d in shown["devices"]}["victim"] == "sent"
    fleet.api("POST", f"/api/v1/rollouts/{rollout['rollout']}/abort", {"reason": "test over"})


def test_an_old_report_sent_again_is_refused(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    """Attack: a replayed report of the same boot."""
    device = new_device("replayed")
    device.connect()
    old = device.report(agent="0.0.1")
    device.report(agent="0.0.2")
    until(lambda: device.view()["agent"] == "0.0.2", what="the newer report")
    device.say(topics.Reported(device.id), old)
    until(lambda: device.view()["security"], what="a security event")
    assert device.view()["agent"] == "0.0.2"
