"""Measuring jobs through a real fleet and broker, and devices with real keys that say what a test lets them say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, Publisher, tiny_bundle, until

from fleet.measuring import measurements
from wire import topics
from wire.chunks import digest
from wire.evidence import Measurement
from wire.messages import MachineState, MeasureReport, Timing

STATE = MachineState(at="2026-11-22T08:00:00.000Z", throttled=False, temperature_c=51.0)
TIMING = Timing(
    runtime="onnxruntime 1.31.1",
    rounds=20,
    n=100,
    p50_ms=4.0,
    p50_low=3.9,
    p50_high=4.1,
    p99_ms=6.0,
    p99_low=5.5,
    p99_high=7.0,
    confidence=0.95,
    load_ms=120.0,
    memory=30_000_000,
    before=STATE,
    after=STATE,
)
HOT = replace(TIMING, after=replace(STATE, throttled=True))


def start(fleet: FleetProcess, device: str, target: str, rounds: int = 20) -> Any:
    return fleet.api("POST", "/api/v1/measuring", {"target": target, "device": device, "rounds": rounds})


def shown(fleet: FleetProcess, job: Any) -> Any:
    return fleet.api("GET", f"/api/v1/measuring/{job['job']}")


def of_model(fleet: FleetProcess, target: str) -> Any:
    (model,) = (m for m in fleet.api("GET", "/api/v1/models") if m["target"] == target)
    return model


def report_of(job: Any, phase: Any = "done", timing: Timing | None = TIMING, reason: str = "") -> MeasureReport:
    return MeasureReport(
        id=job["job"], target=job["target"], digest=job["digest"], phase=phase, reason=reason, timing=timing
    )


@pytest.fixture
def connected(new_device: Any) -> Any:
    def make(name: str, group: str = "default") -> Any:
        device = new_device(name, group)
        device.connect()
        device.answer_to(device.report())  # brings its sealing key
        return device

    return make


def test_a_job_goes_out_with_its_keys_and_what_comes_back_stands_beside_the_release(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    release = publisher.release(*tiny_bundle("10.0.0"))
    device = connected("measure-1")
    job = start(fleet, device.id, release.target)
    desired = device.next_desired(seq=2)
    (asked,) = desired.measure
    assert (asked.id, asked.target, asked.digest, asked.rounds) == (job["job"], release.target, release.digest, 20)
    assert desired.models == ()
    assert release.digest in device.keys(desired)
    device.report(measured=(report_of(job, "running", None),), desired_seq=desired.seq)
    until(lambda: shown(fleet, job)["state"] == "running")

    device.report(measured=(report_of(job),), desired_seq=desired.seq, emulated=False, hardware="a real board")
    assert device.next_desired(seq=desired.seq + 1).measure == ()
    ended = shown(fleet, job)
    assert (ended["state"], ended["throttled"], ended["hardware"]) == ("done", False, "a real board")
    figures = {m.metric: m for m in map(Measurement.from_value, ended["measurements"])}
    assert figures["latency_p50"] == Measurement(
        metric="latency_p50", value=4.0, unit="ms", n=100, low=3.9, high=4.1, kind="measured",
        device="a real board (measure-1)", runtime="onnxruntime 1.31.1",
    )  # fmt: skip
    assert set(figures) == {"latency_p50", "latency_p99", "load", "memory"}
    model = of_model(fleet, release.target)
    assert [m["job"] for m in model["measured"]] == [job["job"]]
    assert (model["evidence"], model["devices"]) == (None, 0)


def test_what_another_machine_took_is_emulated_and_stands_apart(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    release = publisher.release(*tiny_bundle("11.0.0"))
    kinds = {}
    for name, emulated in (("measure-real", False), ("measure-other", True)):
        device = connected(name)
        job = start(fleet, name, release.target)
        device.report(measured=(report_of(job),), emulated=emulated)
        kinds[name] = until(lambda job=job: shown(fleet, job)["measurements"])
    assert {m["kind"] for m in kinds["measure-real"]} == {"measured"}
    assert {m["kind"] for m in kinds["measure-other"]} == {"emulated"}
    assert len(of_model(fleet, release.target)["measured"]) == 2


def test_what_was_taken_while_the_clock_was_held_down_is_marked_and_no_evidence(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    release = publisher.release(*tiny_bundle("12.0.0"))
    device = connected("measure-hot")
    job = start(fleet, device.id, release.target)
    device.report(measured=(report_of(job, timing=HOT),), emulated=False)
    until(lambda: shown(fleet, job)["ended"])
    ended = shown(fleet, job)
    assert (ended["state"], ended["throttled"], ended["measurements"]) == ("done", True, [])
    assert ended["timing"]["p50_ms"] == 4.0


def test_a_device_may_ask_for_the_blobs_of_its_job_and_not_once_it_ended(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    """Attack: a device asks for a release that it should no longer read."""
    release = publisher.release(*tiny_bundle("13.0.0"))
    device = connected("measure-want")
    device.client.subscribe(topics.every(topics.Chunk, digest=release.digest))
    job = start(fleet, device.id, release.target)
    device.want(release.digest, range(1), 1)
    assert device.next(topics.Chunk)[0].digest == release.digest
    device.report(measured=(report_of(job, "failed", None, "no memory"),), desired_seq=2)
    until(lambda: shown(fleet, job)["state"] == "failed")
    assert shown(fleet, job)["reason"] == "no memory"
    device.report(desired_seq=3)
    device.want(release.digest, range(1), 1)
    until(lambda: any("not assigned" in e["reason"] for e in device.view()["security"]))


def test_a_device_cannot_speak_for_a_job_of_another(fleet: FleetProcess, publisher: Publisher, connected: Any) -> None:
    """Attack: one device reports figures under the id of another's job, or of another release."""
    release = publisher.release(*tiny_bundle("14.0.0"))
    mine, other = connected("measure-mine"), connected("measure-liar")
    job = start(fleet, mine.id, release.target)
    other.answer_to(other.report(measured=(report_of(job),)))
    mine.answer_to(mine.report(measured=(replace(report_of(job), digest=digest(b"another")),)))
    assert shown(fleet, job)["state"] == "waiting"


def test_an_operator_of_other_groups_neither_starts_nor_sees_nor_cancels_a_job(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    release = publisher.release(*tiny_bundle("17.0.0"))
    north, south = connected("measure-north", "north"), connected("measure-south", "south")
    asked = {"name": "southern", "roles": ["operator"], "groups": ["south"]}
    token = fleet.api("POST", "/api/v1/tokens", asked)["token"]
    headers = {"Authorization": f"Bearer {token}"}
    job = start(fleet, north.id, release.target)
    path = f"/api/v1/measuring/{job['job']}"
    new = {"target": release.target, "device": north.id}
    for method, where, body in (
        ("POST", "/api/v1/measuring", new),
        ("GET", path, None),
        ("POST", f"{path}/cancel", {}),
    ):
        assert fleet.request(method, where, body, headers=headers)[0] == 403, where
    start(fleet, south.id, release.target)
    listed = fleet.api("GET", "/api/v1/measuring", headers=headers)
    assert [j["device"] for j in listed] == [south.id]
    north.report(measured=(report_of(job),))
    until(lambda: of_model(fleet, release.target)["measured"])
    status, models = fleet.request("GET", "/api/v1/models", headers=headers)
    assert status == 200
    assert all(m["measured"] == [] for m in json.loads(models))


def test_a_job_that_cannot_be_done_is_refused_at_once(
    fleet: FleetProcess, publisher: Publisher, connected: Any, new_device: Any
) -> None:
    release = publisher.release(*tiny_bundle("15.0.0"))
    foreign = publisher.release(*tiny_bundle("15.0.0", profile="raspberry-pi-4"))
    device = connected("measure-busy")
    job = start(fleet, device.id, release.target)
    for target, name, words in (
        (release.target, device.id, f"as {job['job']}"),
        (foreign.target, device.id, "the release is for raspberry-pi-4"),
        ("models/intents/kitchen/99.0.0/x86-64", device.id, "no such release"),
        (release.target, "nobody", "none of that id"),
    ):
        with pytest.raises(ApiError, match=words):
            start(fleet, name, target)
    with pytest.raises(ApiError, match=r"measure\.rounds"):
        start(fleet, new_device("measure-rounds").id, release.target, rounds=5000)


def test_a_job_can_be_taken_back_and_ends_with_its_device(
    fleet: FleetProcess, publisher: Publisher, connected: Any
) -> None:
    release = publisher.release(*tiny_bundle("16.0.0"))
    device, leaving = connected("measure-back"), connected("measure-leaves")
    job, lost = start(fleet, device.id, release.target), start(fleet, leaving.id, release.target)
    assert device.next_desired(seq=2).measure != ()
    assert fleet.api("POST", f"/api/v1/measuring/{job['job']}/cancel", {})["state"] == "cancelled"
    assert device.next_desired(seq=3).measure == ()
    fleet.api("POST", f"/api/v1/devices/{leaving.id}/revoke", {"reason": "lost"})
    until(lambda: shown(fleet, lost)["state"] == "cancelled")
    with pytest.raises(ApiError, match="none of that id"):
        fleet.api("GET", "/api/v1/measuring/m-none")
    assert {j["job"] for j in fleet.api("GET", "/api/v1/measuring")} >= {job["job"], lost["job"]}


def test_evidence_of_a_timing_is_what_the_document_takes() -> None:
    found = measurements(TIMING, "a board", of_profile=True)
    assert [Measurement.from_value(json.loads(m.to_bytes())) for m in found] == list(found)
    assert measurements(HOT, "a board", of_profile=True) == measurements(HOT, "a board", of_profile=False) == ()
