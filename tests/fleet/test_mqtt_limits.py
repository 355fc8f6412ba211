"""The gate and the security log by themselves: clocks that a test moves, a real database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import col, func, select

from fleet import limits as buckets
from fleet.mqtt.limits import BURST, EVERY, Gate, device_in
from fleet.mqtt.security import AT_ONCE, SecurityLog
from fleet.store.database import Database
from fleet.store.tables import Device, SecurityRow

TELEMETRY, WANT = "shoal/1/d/loud/telemetry", "shoal/1/d/loud/want"
OTHER = "shoal/1/d/quiet/telemetry"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passed(gate: Gate, topic: str, times: int) -> int:
    return sum(gate.admits(topic) for _ in range(times))


def test_a_flood_passes_a_burst_and_then_the_rate_and_leaves_other_kinds_and_devices_alone() -> None:
    """Attack: one device floods one topic."""
    clock = Clock()
    gate = Gate(10, clock=clock)
    assert passed(gate, TELEMETRY, 1000) == 10 * BURST
    assert passed(gate, WANT, 10) == passed(gate, OTHER, 10) == 10
    clock.now += 1
    assert passed(gate, TELEMETRY, 1000) == 10


def test_a_flood_is_told_once_a_minute_with_how_much_was_dropped() -> None:
    clock = Clock()
    gate = Gate(10, clock=clock)
    passed(gate, TELEMETRY, 10 * BURST)
    assert gate.floods() == []
    passed(gate, TELEMETRY, 300)
    (flood,) = gate.floods()
    assert (flood.device, flood.topic, flood.dropped) == ("loud", TELEMETRY, 300)
    passed(gate, TELEMETRY, 300)
    assert gate.floods() == []
    clock.now += EVERY
    (again,) = gate.floods()
    assert again.dropped == 300


def test_a_device_that_is_a_little_over_when_it_catches_up_is_no_flood() -> None:
    clock = Clock()
    gate = Gate(10, clock=clock)
    for _ in range(30):
        passed(gate, TELEMETRY, 10 * BURST + 5)
        assert gate.floods() == []
        clock.now += EVERY / 6


def test_the_gate_holds_no_more_devices_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: ever new names."""
    monkeypatch.setattr("fleet.limits.HELD", 100)
    monkeypatch.setattr("fleet.mqtt.limits.HELD", 100)
    gate = Gate(1, clock=Clock())
    for i in range(500):
        passed(gate, f"shoal/1/d/device-{i}/telemetry", BURST + 1)
    assert buckets.HELD == 100
    assert len(gate._buckets._levels) == len(gate._dropped) == 100


@pytest.mark.parametrize("topic", ["", "shoal/1", "shoal/1/fleet/state", "shoal/1/d/x/y/z"])
def test_a_topic_that_is_no_devices_names_none_or_nothing_harmful(topic: str) -> None:
    assert device_in(topic) in ("", "x")


def test_the_events_of_a_flood_of_forgeries_are_few_and_tell_how_many_there_were(tmp_path: Path) -> None:
    """Attack: each forgery that is noted is a write to the disk."""
    clock = Clock()
    database = Database.in_folder(tmp_path)
    try:
        with database.transaction() as session:
            for name in ("loud", "quiet"):
                session.add(Device(id=name, profile="x86-64", created="", token_hash="", token_expires=""))
        log = SecurityLog(database, lambda: datetime.now(UTC), monotonic=clock)
        for i in range(1000):
            log.note(TELEMETRY, f"forgery {i}")
        log.note(OTHER, "the other's only one")
        clock.now += 10
        log.note(TELEMETRY, "one more")
        with database.transaction() as session:
            count = select(func.count()).select_from(SecurityRow)
            assert session.exec(count.where(SecurityRow.device == "loud")).one() == AT_ONCE + 1
            assert session.exec(count.where(SecurityRow.device == "quiet")).one() == 1
            mine = select(SecurityRow).where(SecurityRow.device == "loud").order_by(col(SecurityRow.id).desc())
            newest = session.exec(mine).first()
            assert newest is not None
            assert newest.reason == f"one more (and {1000 - AT_ONCE} more were refused since the event before)"
    finally:
        database.close()
