"""Rollouts through a real fleet, a real broker and devices with real keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, tiny_bundle, until

from wire import topics
from wire.messages import SlotReport, UpdateReport


def start(fleet: FleetProcess, version: str, waves: list[int], *, group: str | None = None, **headers: str) -> Any:
    body = {
        "family": "intents",
        "name": "kitchen",
        "version": version,
        "waves": waves,
        "group": group,
        "gates": "install",
    }
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
            device.answer_to(device.report())

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
    again = fleet.api("POST", f"/api/v1/rollouts/{rollout['rollout']}/abort", {"reason": "not today"})
    assert again == ended, "asked again, as after a lost answer"
    desired = device.next_desired(seq=3)
    assert (desired.seq, desired.models) == (3, ())
    with pytest.raises(ApiError, match="nothing to abort"):
        fleet.api("POST", f"/api/v1/rollouts/{rollout['rollout']}/abort", {"reason": "again"})


def test_an_approval_names_the_wave_that_was_looked_at(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    publisher.release(*tiny_bundle("3.1.0"))
    new_device("approved").connect()
    body = {"family": "intents", "name": "kitchen", "version": "3.1.0", "waves": [100], "gates": "install"}
    rollout = fleet.api("POST", "/api/v1/rollouts", {**body, "approval": "start"})
    path, carol = f"/api/v1/rollouts/{rollout['rollout']}", approver(fleet)
    assert rollout["state"] == "awaiting"
    status, said = fleet.request("POST", f"{path}/approve", {"wave": 0})
    assert status == 401, said
    status, said = fleet.request("POST", f"{path}/approve", {"wave": 1}, headers=carol)
    assert (status, b"does not wait for an approval" in said) == (409, True), said
    assert fleet.api("GET", path)["state"] == "awaiting"
    for _ in range(2):  # the answer may be lost
        status, said = fleet.request("POST", f"{path}/approve", {"wave": 0}, headers=carol)
        assert (status, json.loads(said)["state"]) == (200, "running"), said
    fleet.api("POST", f"{path}/abort", {"reason": "the test is over"})


def approver(fleet: FleetProcess) -> dict[str, str]:
    """A person, for a program may not."""
    known = {"name": "carol", "password": "a long walk by the sea"}
    fleet.api("POST", "/api/v1/users", {**known, "roles": ["approver"]})
    return {"Authorization": f"Bearer {fleet.api('POST', '/api/v1/sessions', known)['token']}"}


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
    """Attack: a replayed report, of the same start and of one before."""
    device = new_device("replayed")
    device.connect()
    old = device.report(agent="0.0.1")
    device.report(agent="0.0.2")
    until(lambda: device.view()["agent"] == "0.0.2", what="the newer report")
    device.say(topics.Reported(device.id), old)
    until(lambda: len(device.view()["security"]) == 1, what="a security event")
    device.starts, device.boot, device.seq = 2, "boot-2", 0
    device.report(agent="0.0.3")
    until(lambda: device.view()["agent"] == "0.0.3", what="the report of the next start")
    device.say(topics.Reported(device.id), old)
    until(lambda: len(device.view()["security"]) == 2, what="another security event")
    assert "report 1.1 of replayed: 2.1 came before" in device.view()["security"][-1]["reason"]
    assert device.view()["agent"] == "0.0.3"


def test_a_report_that_mqtt_delivers_twice_is_answered_twice(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    device = new_device("repeating")
    device.connect()
    report = device.report()
    device.say(topics.Reported(device.id), report)
    first, second = device.answer_to(report), device.answer_to(report)
    assert second.seq == first.seq + 1
    assert device.view()["security"] == []


def test_a_clone_raises_an_alarm_and_does_not_speak_for_the_device(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    """Attack: the disk of a device is copied to another machine, key and all; both start."""
    device = new_device("original")
    device.connect()
    device.answer_to(device.report(agent="0.0.1"))
    device.boot = "boot-of-the-clone"
    device.report(agent="6.6.6")
    event = until(lambda: device.view()["security"], what="a security event")[-1]
    assert "two machines use this identity" in event["reason"]
    assert device.view()["agent"] == "0.0.1"


def test_a_device_cannot_report_for_another_one(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    """Attack: what another device signed comes on one's own topic, and the reverse is not delivered."""
    one, two = new_device("one"), new_device("two")
    two.connect()
    one.connect()
    stolen = one.report(agent="0.0.1")
    two.say(topics.Reported(two.id), stolen, signer=one.signer)
    until(lambda: len(two.view()["security"]) == 1, what="a security event")
    two.say(topics.Reported(two.id), stolen, signer=two.signer)
    until(lambda: len(two.view()["security"]) == 2, what="another security event")
    assert "sent by two" in two.view()["security"][-1]["reason"]
    two.say(topics.Reported(one.id), stolen, signer=one.signer)
    two.report(agent="0.0.2")
    until(lambda: two.view()["agent"] == "0.0.2", what="the honest report")
    assert (one.view()["security"], one.view()["agent"]) == ([], "0.0.1")


def test_what_an_older_memory_of_the_broker_brings_is_no_attack(tmp_path: Path, enrolling: Any) -> None:
    """Accident: the broker saved a report, lost the next one in a power cut, and brings the old one."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("remembered")
        device.connect()
        device.answer_to(device.report(agent="0.0.1"))
        device.answer_to(device.report(agent="0.0.2"))
        device.disconnect()
        memory = fleet.data / "broker" / "mosquitto.db"
        fleet.stop()
        saved = memory.read_bytes()
        fleet.start()
        device.connect()
        device.answer_to(device.report(agent="0.0.3"))
        device.disconnect()
        fleet.stop()
        assert memory.read_bytes() != saved
        memory.write_bytes(saved)
        fleet.start()
        device.connect()
        device.send(device.batch(1))
        device.next_ack()
        assert (device.view()["agent"], device.view()["security"]) == ("0.0.3", [])


def test_a_rollout_to_a_group_reaches_nobody_else(
    fleet: FleetProcess, publisher: Publisher, enrolling: Any, new_device: Any
) -> None:
    publisher.release(*tiny_bundle("6.0.0"))
    inside, outside = new_device("inside", group="north"), new_device("outside")
    for device in (inside, outside):
        device.connect()
    with pytest.raises(ApiError, match="no enrolled device of group nowhere"):
        start(fleet, "6.0.0", [100], group="nowhere")
    rollout = start(fleet, "6.0.0", [100], group="north")
    assert ([d["device"] for d in rollout["devices"]], rollout["group"]) == (["inside"], "north")
    with pytest.raises(ApiError, match="is running"):
        start(fleet, "6.0.0", [100])
    other = start(fleet, "6.0.0", [100], group="default")
    assert "inside" not in [d["device"] for d in other["devices"]]
    for running in (rollout, other):
        fleet.api("POST", f"/api/v1/rollouts/{running['rollout']}/abort", {"reason": "test over"})


def test_an_operator_of_a_group_runs_rollouts_of_it_and_of_no_other(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    """Attack: an operator who is given one group deploys to another, or to all."""
    publisher.release(*tiny_bundle("6.1.0"))
    new_device("eastern", group="east")
    device = new_device("western", group="west")
    asked = {"name": "east-operator", "roles": ["operator"], "groups": ["east"], "program": True}
    token = fleet.api("POST", "/api/v1/tokens", asked)["token"]
    as_operator = {"Authorization": f"Bearer {token}"}
    for group in (None, "west"):
        with pytest.raises(ApiError, match=r"only (on|to) east") as refused:
            start(fleet, "6.1.0", [100], group=group, **as_operator)
        assert refused.value.status == 403
    theirs = start(fleet, "6.1.0", [100], group="west")
    path = "/api/v1/rollouts/{}/abort"
    with pytest.raises(ApiError, match="only on east"):
        fleet.api("POST", path.format(theirs["rollout"]), {"reason": "mine"}, headers=as_operator)
    with pytest.raises(ApiError, match="only on east"):
        fleet.api("POST", f"/api/v1/devices/{device.id}/commands", {"action": "report"}, headers=as_operator)
    mine = start(fleet, "6.1.0", [100], group="east", **as_operator)
    assert [d["device"] for d in mine["devices"]] == ["eastern"]
    ended = fleet.api("POST", path.format(mine["rollout"]), {"reason": "mine"}, headers=as_operator)
    assert ended["state"] == "aborted"
    fleet.api("POST", path.format(theirs["rollout"]), {"reason": "test over"})


def test_a_device_that_has_too_many_models_fails_its_rollout_and_nothing_else(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    """Accident: models and their keys outgrow the desired state, which has a limit on the device."""
    device = new_device("crowded", group="crowded")
    device.connect()
    device.answer_to(device.report())
    for i in range(30):
        manifest, blobs = tiny_bundle(f"{i}.0.0", name=f"model-{i}")
        publisher.upload([manifest.to_bytes(), *blobs])
        publisher.list(manifest)
    publisher.post(publisher.release_documents())
    for i in range(30):
        body = {"family": "intents", "name": f"model-{i}", "version": f"{i}.0.0", "waves": [100], "group": "crowded"}
        rollout = fleet.api("POST", "/api/v1/rollouts", body)
        if rollout["state"] != "running":
            break
    assert (rollout["state"], i > 5) == ("aborted", True)
    assert "give it fewer" in rollout["reasons"][0]
    models = [m["target"].split("/")[2] for m in device.view()["desired"]]
    assert models == [f"model-{n}" for n in range(i)]
    device.answer_to(device.report())
    assert device.view()["security"] == []


def test_a_device_that_is_revoked_during_a_rollout_neither_holds_it_nor_is_brought_back(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    publisher.release(*tiny_bundle("7.0.0"))
    staying, leaving = new_device("staying", group="south"), new_device("going", group="south")
    staying.connect()
    rollout = start(fleet, "7.0.0", [100], group="south")
    desired = staying.next_desired(seq=2)
    fleet.api("POST", f"/api/v1/devices/{leaving.id}/revoke", {"reason": "lost"})
    answer(staying, desired, "committed")
    ended = until_rollout(fleet, rollout["rollout"], state="done")
    assert {d["device"]: d["state"] for d in ended["devices"]} == {"staying": "committed", "going": "left"}
    assert leaving.view()["desired"] == []
