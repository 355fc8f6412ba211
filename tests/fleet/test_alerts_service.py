"""The looks of a fleet at its rules, over a database: what stands in the table of alerts after each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from fleet.access import Caller
from fleet.errors import Forbidden
from fleet.evidence.packing import pack
from fleet.health.alerts import Alerts, NewSilence
from fleet.health.courier import Courier
from fleet.health.status import Hearing
from fleet.lease import Lease
from fleet.serial import Serial
from fleet.store.database import Database
from fleet.store.evidence_tables import EvidenceSubject, EvidenceWindow
from fleet.store.health_tables import AlertMessage
from fleet.store.tables import CertificateRow, Device
from wire.units import show_instant

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DIGEST = f"sha256:{'a' * 64}"
RULES = """
wait = "0 s"
[channels.ops]
kind = "webhook"
url = "https://hooks.example.org/x"
[rules.broken]
kind = "errors"
over = "10 min"
[rules.away]
kind = "device-offline"
[rules.expiring]
kind = "certificate"
[rules.moves]
kind = "drift"
"""


EVERYBODY = Caller("root", frozenset({"admin"}))
KITCHENS = Caller("bob", frozenset({"operator"}), frozenset({"kitchens"}))


class World:
    """One process of a fleet: its own connections, rules and clock."""

    def __init__(self, folder: Path, holder: str = "one") -> None:
        (folder / "alerts.toml").write_text(RULES)
        self.now = NOW
        self.database = Database.in_folder(folder)
        self.serial = Serial()
        leads = Lease("rollouts", holder, timedelta(seconds=30), lambda: self.now).held
        self.alerts = Alerts(folder, self.database, lambda: self.now, own=dict, leads=leads)
        rules, clock = lambda: self.alerts.rules, lambda: self.now
        self.courier = Courier(self.database, self.serial, rules, clock, "https://f", leads)

    def look(self) -> None:
        self.now += timedelta(seconds=10)
        hearing = Hearing(self.now, NOW - timedelta(hours=1), timedelta(days=90), timedelta(days=30))
        self.alerts.tick(hearing, self.courier)

    def open(self, caller: Caller = EVERYBODY) -> set[str]:
        with self.database.transaction() as session:
            return {alert["subject"] for alert in self.alerts.view(session, caller)["alerts"]}

    def told(self) -> list[str]:
        with self.database.transaction() as session:
            texts = session.exec(select(AlertMessage.document).order_by(AlertMessage.created)).all()
            return [json.loads(text)["what"] for text in texts]

    def close(self) -> None:
        self.serial.close()
        self.database.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def join(world: World, id_: str, *, online: bool = True, models: str = "[]", group: str = "default") -> None:
    gone = None if online else show_instant(NOW)
    with world.database.transaction() as session:
        session.add(
            Device(
                id=id_, profile="x86-64", group=group, created="", token_hash="", token_expires="", state="enrolled",
                online=online, gone=gone, last_seen=show_instant(NOW), desired_models=models,
            )
        )  # fmt: skip


def test_a_model_that_fails_and_is_asked_no_more_stays_open_until_it_is_taken_back(world: World) -> None:
    join(world, "a", models=json.dumps([{"model": "intents/kitchen", "digest": DIGEST}]))
    begins = int(NOW.timestamp()) - 600
    with world.database.transaction() as session:
        model = {"model": "intents/kitchen", "digest": DIGEST, "profile": "x86-64", "shadow": False}
        session.add(EvidenceSubject(id=1, device="", newest=begins, **model))
        numbers = {"requests": 100, "errors": 100, "latency": pack({})}
        session.add(EvidenceWindow(subject=1, span=600, begins=begins, ends=begins + 600, **numbers))
    world.look()
    assert world.open() == {f"intents/kitchen {DIGEST[:19]}"}
    world.now += timedelta(hours=3)
    world.look()
    assert world.open() == {f"intents/kitchen {DIGEST[:19]}"}, "nobody asks it any more: that is no recovery"
    with world.database.transaction() as session:
        device = session.get_one(Device, "a")
        device.desired_models = "[]"
        session.add(device)
    world.look()
    assert world.open() == set()
    assert world.told()[-1] == "recovered"


# --- who sees what, and may say what ----------------------------------------------------------------------------------


def test_an_operator_of_a_group_sees_and_acknowledges_what_is_of_its_devices_only(world: World) -> None:
    for id_, group in (("mine", "kitchens"), ("theirs", "lab")):
        join(world, id_, online=False, group=group)
        with world.database.transaction() as session:
            soon = show_instant(NOW + timedelta(days=3))
            session.add(CertificateRow(serial=id_, device=id_, pem="", issued="", expires=soon, state="current"))
    drifts = {
        f"intents {DIGEST[:19]} labels, {place}": "PSI" for place in ("all devices", "group:lab", "group:kitchens")
    }
    world.alerts._drifting = lambda _session: drifts
    world.look()
    mine = {"mine", "device mine", *(subject for subject in drifts if "group:lab" not in subject)}
    assert world.open(KITCHENS) == mine
    assert world.open() == {*mine, *drifts, "theirs", "device theirs"}
    with world.database.transaction() as session:
        ids = {alert["subject"]: alert["id"] for alert in world.alerts.view(session, EVERYBODY)["alerts"]}
        assert world.alerts.acknowledge(session, ids["device mine"], KITCHENS)["acknowledged"] == "bob"
        with pytest.raises(Forbidden, match="lab"):
            world.alerts.acknowledge(session, ids["device theirs"], KITCHENS)
        for subject in ("device mine", "theirs", "device theirs"):
            asked = NewSilence(rule="", subject=subject, lasts=timedelta(hours=1), reason="known")
            world.alerts.silence(session, asked, EVERYBODY)
        shown = world.alerts.view(session, KITCHENS)["silences"]
    assert [one["subject"] for one in shown] == ["device mine"]


# --- two processes on one database ------------------------------------------------------------------------------------


def test_of_two_processes_one_tells_and_the_other_takes_over_where_it_was(world: World, tmp_path: Path) -> None:
    join(world, "a", online=False)
    other = World(tmp_path, "other")
    try:
        for _ in range(5):
            world.look()
            other.now = world.now
            other.look()
        assert (world.told(), other.open()) == (["open"], {"a"})
        assert other.courier._next("ops") is None, "who does not lead sends nothing"
        assert world.courier._next("ops") is not None
        with other.database.transaction() as session:
            device = session.get_one(Device, "a")
            device.online, device.gone = True, None
            session.add(device)
        other.now += timedelta(seconds=31)  # the other one stands still
        other.look()
        assert other.told() == ["open", "recovered"]
        assert other.courier._next("ops") is not None
        world.look()
        assert world.told() == ["open", "recovered"]
        assert world.courier._next("ops") is None
    finally:
        other.close()
