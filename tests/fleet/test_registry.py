"""The registry of a real fleet: versions, aliases that begin rollouts, lineage down to the device, suggestions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from evidence_of import evidence
from fleet_process import ApiError, FleetProcess, Publisher, tiny_bundle
from rich.console import Console

from cli.registry import alias_view, lineage_view, suggest_table, versions_table
from wire.bundle import BundleFile
from wire.chunks import digest
from wire.lineage import Dataset, Lineage, PassRecord
from wire.messages import SlotReport
from wire.release import Release

MODELS = "/api/v1/registry/models"
SOURCE = digest(b"the source")
LINEAGE = Lineage(
    source=SOURCE,
    source_kind="huggingface",
    architecture="BertForSequenceClassification",
    recipe="onnx-int8-dynamic",
    passes=(PassRecord(name="onnx-export"),),
    datasets=(Dataset(name="kitchen.jsonl", digest=digest(b"rows"), use="test", rows=120, licence="CC-BY-4.0"),),
    tools={"onnxruntime": "1.31.1"},
    machine="x86_64",
)


def release(publisher: Publisher, version: str, counter: int, *, name: str = "kitchen") -> Release:
    """A release with a lineage, and evidence beside it."""
    manifest, blobs = tiny_bundle(version, name=name)
    made = LINEAGE.to_bytes()
    file = BundleFile(role="lineage", path="lineage.json", digest=digest(made), size=len(made))
    manifest = replace(manifest, files=(*manifest.files, file))
    released = publisher.release(manifest, [*blobs, made], counter=counter)
    record = evidence(subject=released.digest, target=released.target).to_bytes()
    publisher.upload([record])
    publisher.fleet.api("POST", "/api/v1/evidence", {"digest": digest(record)})
    return released


def program(fleet: FleetProcess, *roles: str) -> dict[str, str]:
    body = {"name": "-".join(roles), "roles": list(roles), "program": True}
    return {"Authorization": f"Bearer {fleet.api('POST', '/api/v1/tokens', body)['token']}"}


def text_of(view: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_from_source_to_device_by_the_alias_that_people_say(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    release(publisher, "1.0.0", 1)
    new = release(publisher, "1.1.0", 2)
    device = new_device("registry-1")
    device.connect()
    device.answer_to(device.report())
    kitchen = f"{MODELS}/intents/kitchen"

    moved = fleet.api(
        "POST",
        f"{kitchen}/aliases/production",
        {"version": "1.1.0", "reason": "better on kettles", "rollout": {"waves": [100]}},
    )
    assert moved["aliases"] == {"production": "1.1.0"}
    rollout = fleet.api("GET", f"/api/v1/rollouts/{moved['rollout']}")
    assert (rollout["version"], [d["device"] for d in rollout["devices"]]) == ("1.1.0", [device.id])
    assert moved["moves"][0]["rollout"] == moved["rollout"]
    desired = device.next_desired(seq=2)
    assert [m.digest for m in desired.models] == [new.digest]

    slot = SlotReport(model="kitchen", slot="active", target=new.target, digest=new.digest)
    device.answer_to(device.report(slots=(slot,), desired_seq=desired.seq))
    lineage = fleet.api("GET", f"{kitchen}/versions/@production/lineage")
    (bundle,) = lineage["bundles"]
    assert (lineage["version"], lineage["aliases"]) == ("1.1.0", ["production"])
    assert bundle["lineage"]["source"] == SOURCE
    assert bundle["lineage"]["datasets"][0]["name"] == "kitchen.jsonl"
    assert bundle["running"] == [device.id]
    assert lineage["rollouts"][0]["rollout"] == moved["rollout"]

    shown = fleet.api("GET", MODELS)
    (model,) = shown
    versions = [(v["version"], v["aliases"], v["devices"], v["devices_online"]) for v in model["versions"]]
    assert versions == [("1.0.0", [], 0, 0), ("1.1.0", ["production"], 1, 1)]
    assert "production" in text_of(versions_table(shown))
    assert "better on kettles" in text_of(alias_view(moved))
    assert "registry-1" in text_of(lineage_view(lineage))


def test_a_rollout_by_an_alias_keeps_the_version_that_it_meant(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    old = release(publisher, "1.0.0", 1, name="hall")
    release(publisher, "1.1.0", 2, name="hall")
    device = new_device("registry-2")
    device.connect()
    device.answer_to(device.report())
    alias = f"{MODELS}/intents/hall/aliases/next"
    fleet.api("POST", alias, {"version": "1.0.0"})
    body = {"family": "intents", "name": "hall", "version": "@next", "gates": "install"}
    key = {**program(fleet, "operator"), "Idempotency-Key": "hall"}
    planned = fleet.api("POST", "/api/v1/rollouts/plan", body)
    assert {d["target"] for wave in planned["waves"] for d in wave["devices"]} == {old.target}
    first = json.loads(fleet.request("POST", "/api/v1/rollouts", body, headers=key)[1])
    fleet.api("POST", alias, {"version": "1.1.0"})
    # The answer was lost, and the alias has moved meanwhile: it is the same rollout, of the same version.
    status, again = fleet.request("POST", "/api/v1/rollouts", body, headers=key)
    assert status == 201
    assert json.loads(again) == first
    with pytest.raises(ApiError, match="no such alias; it has @next"):
        fleet.api("POST", "/api/v1/rollouts/plan", {**body, "version": "@production"})


def test_an_alias_that_means_the_version_already_still_begins_its_rollout(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    release(publisher, "1.0.0", 1, name="porch")
    release(publisher, "1.1.0", 2, name="porch")
    device = new_device("registry-3")
    device.connect()
    device.answer_to(device.report())
    alias = f"{MODELS}/intents/porch/aliases/next"
    body = {"version": "1.0.0", "rollout": {"waves": [100], "target": "device=registry-3"}}
    assert fleet.api("POST", alias, {"version": "1.0.0"})["rollout"] == ""
    first = fleet.api("POST", alias, body)["rollout"]
    assert first
    assert fleet.api("POST", alias, body)["rollout"] == first, "the answer was lost, and it goes on"
    fleet.api("POST", f"/api/v1/rollouts/{first}/abort", {"reason": "wrong day"})
    key = {"Authorization": f"Bearer {fleet.token}", "Idempotency-Key": "porch"}
    second = json.loads(fleet.request("POST", alias, body, headers=key)[1])["rollout"]
    assert second not in ("", first)
    fleet.api("POST", f"/api/v1/rollouts/{second}/abort", {"reason": "wrong day"})
    fleet.api("POST", alias, {"version": "1.1.0"})
    # Sent again after all that: it is that rollout still, and the alias stays where somebody moved it.
    again = json.loads(fleet.request("POST", alias, body, headers=key)[1])
    assert (again["rollout"], again["aliases"]) == (second, {"next": "1.1.0"})


def test_an_alias_whose_rollout_cannot_begin_is_not_moved(fleet: FleetProcess, publisher: Publisher) -> None:
    release(publisher, "1.0.0", 1, name="garage")
    alias = f"{MODELS}/intents/garage/aliases/staging"
    with pytest.raises(ApiError) as e:
        fleet.api("POST", alias, {"version": "1.0.0", "rollout": {"waves": [100], "group": "nobody-is-here"}})
    assert e.value.status == 409
    assert fleet.api("GET", f"{MODELS}/intents/garage")["aliases"] == {}


def test_who_may_move_which_alias_is_asked_at_the_door(fleet: FleetProcess, publisher: Publisher) -> None:
    release(publisher, "1.0.0", 1, name="cellar")
    aliases, manager = f"{MODELS}/intents/cellar/aliases", program(fleet, "release-manager")

    def post(alias: str, headers: dict[str, str], **more: Any) -> int:
        return fleet.request("POST", f"{aliases}/{alias}", {"version": "1.0.0", **more}, headers=headers)[0]

    assert post("production", manager) == 403
    assert post("staging", manager) == 200
    assert post("production", program(fleet, "approver")) == 200
    # Who may name a version may not send it: that is an operator's.
    assert post("canary", manager, rollout={"waves": [100]}) == 403
    assert "canary" not in fleet.api("GET", f"{MODELS}/intents/cellar")["aliases"]
    subjects = [entry["subject"] for entry in fleet.api("GET", "/api/v1/audit/newest?limit=50")]
    assert any("alias production of intents/cellar to 1.0.0" in subject for subject in subjects)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("intents/kitchen/aliases/production", {"version": "9.9.9"}, 404),
        ("intents/nothing/aliases/production", {"version": "1.0.0"}, 404),
        ("intents/kitchen/aliases/Bad", {"version": "1.0.0"}, 400),
        ("intents/kitchen/aliases/nobody/remove", {}, 404),
    ],
)
def test_what_is_not_there_is_refused(
    fleet: FleetProcess, publisher: Publisher, path: str, body: dict[str, str], status: int
) -> None:
    release(publisher, "1.0.0", 1)
    with pytest.raises(ApiError) as e:
        fleet.api("POST", f"{MODELS}/{path}", body)
    assert e.value.status == status


def test_a_suggestion_stands_on_the_evidence_there_is(fleet: FleetProcess, publisher: Publisher) -> None:
    release(publisher, "2.0.0", 3, name="attic")
    query = "/api/v1/registry/suggest?profile=x86-64&task=text-classification"
    found = next(one for one in fleet.api("GET", f"{query}&max_ms=100") if "attic" in one["target"])
    # The build took it on another machine: it may hold, but nobody saw it.
    assert (found["fit"], found["latency"]["ground"], found["quality"]["ground"]) == ("unknown", "emulated", "build")
    slow = next(one for one in fleet.api("GET", f"{query}&max_ms=0.1") if "attic" in one["target"])
    assert slow["fit"] == "too slow"
    assert "emulated" in text_of(suggest_table("x86-64", [found]))
    assert fleet.api("GET", "/api/v1/registry/suggest?profile=jetson-orin") == []
    with pytest.raises(ApiError) as e:
        fleet.api("GET", f"{query}&max_ms=-1")
    assert e.value.status == 400
