"""What the fleet keeps of a device's refusals, and what the broker must not keep of a device that left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import select

from fleet import devices
from fleet.mqtt.outbox import Outbox
from fleet.store.database import Database
from fleet.store.tables import Device, SecurityRow
from wire.messages import Reported, SecurityEvent
from wire.units import show_instant

NOW = datetime(2026, 11, 22, tzinfo=UTC)
REPORT: dict[str, Any] = {
    "boot": "b",
    "starts": 1,
    "seq": 1,
    "nonce": "n",
    "time": "2026-11-22T00:00:00Z",
    "sealing_key": "",
    "agent": "0",
    "profile": "x86-64",
    "hardware": "",
    "emulated": False,
    "desired_epoch": 0,
    "desired_seq": 0,
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database.in_folder(tmp_path)) as opened:
        yield opened


def device(name: str, **changes: Any) -> Device:
    return Device(id=name, profile="x86-64", created="", token_hash="", token_expires="", **changes)


def test_one_thing_tried_over_and_over_does_not_push_out_what_else_was_refused(database: Database) -> None:
    """Attack: whoever was seen once makes a hundred more events of another kind, so that the first one is forgotten."""
    with database.transaction() as session:
        session.add(device("watched"))
        devices.record_refusal(session, "watched", "reported", "a forgery", NOW)
        for _ in range(2 * devices.SECURITY_HELD):
            devices.record_refusal(session, "watched", "enrolment", "another key", NOW)
        reasons = list(session.exec(select(SecurityRow.reason)))
        assert reasons == ["a forgery", "another key"]
        for n in range(2 * devices.SECURITY_HELD):
            devices.record_refusal(session, "watched", "reported", f"forgery {n}", NOW)
        assert len(session.exec(select(SecurityRow.id)).all()) == devices.SECURITY_HELD


def test_the_status_counts_what_was_refused_in_the_last_day_here_and_on_the_devices(database: Database) -> None:
    def report(**event: str) -> str:
        security = (SecurityEvent(subject="desired state", reason="forged", **event),)
        return Reported(**REPORT, device="seen", security=security).to_bytes().decode()

    old, new = show_instant(NOW - timedelta(days=2)), show_instant(NOW - timedelta(hours=2))
    with database.transaction() as session:
        assert devices.security_counts(session, NOW) == {"events": 0, "devices": 0}
        session.add(device("seen", reported=report(at=old)))
        devices.record_refusal(session, "seen", "reported", "old", NOW - timedelta(days=2))
        assert devices.security_counts(session, NOW) == {"events": 0, "devices": 0}
        session.get_one(Device, "seen").reported = report(at=new)
        session.add(device("other"))
        for n in range(3):
            devices.record_refusal(session, "other", "telemetry", f"replay {n}", NOW)
        assert devices.security_counts(session, NOW) == {"events": 4, "devices": 2}


def test_a_fleet_that_was_killed_before_it_cleared_a_retained_order_clears_it_when_it_connects(
    database: Database,
) -> None:
    """Accident: SIGKILL between the revocation in the database and its message to the broker."""
    with database.transaction() as session:
        session.add(device("out", state="revoked"))
        session.add(device("in", state="enrolled", desired_envelope="signed"))
        session.add(device("new"))
    said: dict[str, bytes] = {}
    link: Any = SimpleNamespace(publish=lambda topic, payload, **_: said.update({topic: payload}))
    repository: Any = SimpleNamespace(messages=list)
    orders: Any = None
    Outbox(link, database, repository, orders).everything()
    assert said == {"shoal/1/d/in/desired": b"signed", "shoal/1/d/out/desired": b""}
