"""Models in shadow through a real fleet and broker, and devices with real keys that say what a test lets them say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_process import ApiError, FleetProcess, Publisher, tiny_bundle, until
from sqlmodel import Session

from fleet import devices
from fleet.errors import Conflict
from fleet.lease import alone
from fleet.shadows import ShadowRequest, Shadows
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.desired import DesiredStates, shadows_of
from fleet.trust.orders import Dates
from wire import topics
from wire.chunks import digest
from wire.messages import InferenceStats, SlotReport, UpdateReport
from wire.orders import DesiredModel
from wire.shadow import ShadowReport
from wire.sketch import Sketch


def roll_out(fleet: FleetProcess, version: str, name: str = "kitchen") -> Any:
    body = {"family": "intents", "name": name, "version": version, "waves": [100]}
    return fleet.api("POST", "/api/v1/rollouts", body)


def desired_after(device: Any, condition: Any) -> Any:
    seq = 1
    while True:
        desired = device.next_desired(seq=seq)
        if condition(desired):
            return desired
        seq = desired.seq + 1


def commit(device: Any, desired: Any) -> None:
    (model,) = desired.models
    update = UpdateReport(target=model.target, digest=model.digest, rollout=model.rollout, phase="committed")
    slot = SlotReport(model=model.model, slot="active", target=model.target, digest=model.digest)
    device.report(update, slots=(slot,), desired_seq=desired.seq)


def shoal(fleet: FleetProcess, *words: str) -> str:
    """What a command of `shoal device` prints, on one line."""
    environment = {**os.environ, "SHOAL_DATA": str(fleet.data), "COLUMNS": "200"}
    command = [sys.executable, "-P", "-m", "cli", "device", *words]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def refused(fleet: FleetProcess, device: str, **body: Any) -> str:
    with pytest.raises(ApiError) as told:
        fleet.api("POST", f"/api/v1/devices/{device}/shadows", body)
    return str(told.value)


def test_a_shadow_goes_out_with_its_keys_beside_the_model_and_ends_when_it_is_promoted(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    (one, _), (two, blobs) = tiny_bundle("1.0.0"), tiny_bundle("2.0.0")
    first, second = publisher.release(one, _), publisher.release(two, blobs)
    device = new_device("shadow-1")
    device.connect(topics.every(topics.Chunk))
    device.answer_to(device.report())
    assert "no model kitchen" in refused(fleet, device.id, target=second.target)
    rollout = roll_out(fleet, "1.0.0")["rollout"]
    desired = desired_after(device, lambda d: d.models)
    commit(device, desired)
    until(lambda: fleet.api("GET", f"/api/v1/rollouts/{rollout}")["state"] == "done")
    assert "is to run already" in refused(fleet, device.id, target=first.target)
    assert "expected 1 to 100" in refused(fleet, device.id, target=second.target, share=0)
    assert "no such release" in refused(fleet, device.id, target=second.target.replace("2.0.0", "7.0.0"))

    device.want(second.digest, range(1), 1)  # nobody assigned it yet
    (shown,) = fleet.api(
        "POST", f"/api/v1/devices/{device.id}/shadows", {"target": second.target, "share": 50, "max_c": 60}
    )
    desired = desired_after(device, lambda d: d.shadows)
    (shadow,) = desired.shadows
    assert (shadow.target, shadow.digest, shadow.share, shadow.max_c) == (second.target, second.digest, 50, 60.0)
    assert shown["digest"] == second.digest
    assert [m.digest for m in desired.models] == [first.digest]
    assert {first.digest, second.digest, digest(blobs[0])} <= device.keys(desired).keys()
    device.want(second.digest, range(1), 1)
    assert device.next(topics.Chunk)[0].digest == second.digest
    seq = desired.seq
    fleet.api("POST", f"/api/v1/devices/{device.id}/shadows", {"target": second.target, "share": 50, "max_c": 60})

    said = ShadowReport(target=second.target, digest=second.digest, phase="running", memory=5)
    device.report(slots=(), shadows=(said,), desired_seq=seq)
    until(lambda: device.view()["shadows"] == [said.to_value()])
    beside = InferenceStats(
        model="kitchen", digest=second.digest, requests=9, errors=1, latency_ms=Sketch.of([5.0] * 8), shadow=True,
        compared=8, agreed=7,
    )  # fmt: skip
    answered = InferenceStats(model="kitchen", digest=first.digest, requests=40, errors=0)
    device.say(topics.Telemetry(device.id), device.batch(1, inference=(beside, answered)))
    until(lambda: device.view()["stats"]["records"] == 1)
    stats = device.view()["stats"]
    assert (stats["requests"], stats["errors"]) == (40, 0)  # what answered nobody is no request

    roll_out(fleet, "2.0.0")
    desired = desired_after(device, lambda d: d.models[0].digest == second.digest)
    assert desired.shadows == ()
    assert second.digest in device.keys(desired)


def test_a_shadow_that_is_ended_is_gone_with_its_keys_and_stays_beside_other_changes(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    (one, _), (two, blobs) = tiny_bundle("1.0.0", name="hall"), tiny_bundle("2.0.0", name="hall")
    publisher.release(one, _)
    second = publisher.release(two, blobs)
    device = new_device("shadow-2")
    device.connect()
    device.answer_to(device.report())
    roll_out(fleet, "1.0.0", "hall")
    commit(device, desired_after(device, lambda d: d.models))
    told = shoal(fleet, "shadow", device.id, second.target, "--memory", "2 MiB")
    assert told == f"{device.id}: runs in shadow {second.target} on 20 % of the requests, 10 % of a core"
    (shadow,) = desired_after(device, lambda d: d.shadows).shadows
    assert (shadow.share, shadow.memory) == (20, 2 << 20)
    said = ShadowReport(target=second.target, digest=second.digest, phase="paused", reason="too warm")
    device.report(slots=(), shadows=(said,))
    until(lambda: device.view()["shadows"])
    assert "too warm" in shoal(fleet, "show", device.id)
    job = {"target": second.target, "device": device.id, "rounds": 3}
    fleet.api("POST", "/api/v1/measuring", job)
    assert desired_after(device, lambda d: d.measure).shadows[0].digest == second.digest
    for _again in range(2):
        assert shoal(fleet, "end-shadow", device.id, "hall") == f"{device.id}: runs nothing in shadow from now on"
    assert desired_after(device, lambda d: not d.shadows).measure


# --- without a fleet process ----------------------------------------------------------------------------

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OLD, NEW = (
    DesiredModel(target=f"models/intents/kitchen/{version}/x86-64", digest=digest(version.encode()))
    for version in ("1.0.0", "2.0.0")
)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Three devices of a fleet that run version one."""
    with closing(Database.in_folder(tmp_path)) as database, database.transaction() as session:
        for name in ("a", "b", "c"):
            device = Device(
                id=name, profile="x86-64", created="", token_hash="", token_expires="", state="enrolled", desired_seq=4
            )
            session.add(device)
            session.flush()
            DESIRED.assign(session, device, [OLD])
        yield session


TIMES = Dates("2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z")
ORDERS: Any = SimpleNamespace(epoch=1, dates=lambda _: TIMES, sign=lambda _: b"{}")
NO_KEYS: Any = SimpleNamespace(ring=lambda _: {}, of_offers=lambda _: {})
DESIRED = DesiredStates(ORDERS, NO_KEYS, timedelta(days=7))
LISTED: Any = SimpleNamespace(release=SimpleNamespace(digest=NEW.digest), manifest=SimpleNamespace(profile="x86-64"))
REPOSITORY: Any = SimpleNamespace(releases={NEW.target: LISTED})
SHADOWS = Shadows(REPOSITORY, DESIRED)
ASKED = ShadowRequest(target=NEW.target, share=20)


def test_a_shadow_ends_with_its_promotion_or_when_it_is_ended(session: Session) -> None:
    a, b, c = (session.get_one(Device, name) for name in "abc")
    for device in (a, b, c):
        assert SHADOWS.begin(session, device, ASKED)
        assert not SHADOWS.begin(session, device, ASKED)
    DESIRED.assign(session, b, [NEW])  # its turn came
    assert shadows_of(session, b) == []
    seq = a.desired_seq
    assert SHADOWS.end(session, a, "kitchen")
    assert a.desired_seq == seq + 1
    assert not SHADOWS.end(session, a, "kitchen")
    assert [one.digest for one in shadows_of(session, c)] == [NEW.digest]


def test_who_does_not_lead_signs_nothing_again(session: Session) -> None:
    far = SimpleNamespace(**vars(ORDERS), clock=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    stands_by = DesiredStates(far, NO_KEYS, timedelta(days=7), leads=lambda _: False)  # type: ignore[arg-type]
    assert stands_by.refresh(session) == []
    assert replace(stands_by, leads=alone).refresh(session) == ["a", "b", "c"]


def test_a_device_that_left_and_came_back_runs_nothing_in_shadow_any_more(session: Session) -> None:
    """Accident: it is enrolled anew under its name, and a rollout gives it the model again."""
    a = session.get_one(Device, "a")
    SHADOWS.begin(session, a, ASKED)
    devices.leave(session, a, "retired", "it was sold", NOW)
    with pytest.raises(Conflict, match="it is retired"):
        SHADOWS.begin(session, a, ASKED)
    a.state = "enrolled"
    DESIRED.assign(session, a, [OLD])
    assert shadows_of(session, a) == []
