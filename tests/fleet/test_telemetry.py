from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from fleet_process import FleetProcess, initialise_trust, until

from fleet import device_views, telemetry
from fleet.health.status import Hearing
from fleet.mqtt.security import AT_ONCE
from fleet.store.database import Database
from fleet.store.tables import Device, DeviceStats
from wire import topics
from wire.dsse import seal
from wire.messages import Health, InferenceStats, TelemetryBatch, TelemetryRecord
from wire.sketch import Sketch
from wire.units import instant

DEAF = Hearing(datetime(2026, 11, 22, tzinfo=UTC), None, timedelta(0), timedelta(0))
"""A fleet without a line to its broker: of no interest here."""

DIGEST = "sha256:" + "0" * 64
TIME = "2026-11-22T08:00:00.000Z"
WINDOW = {
    "inference": (
        InferenceStats(
            model="kitchen",
            digest=DIGEST,
            requests=4,
            errors=1,
            latency_ms=Sketch.of([1.0, 2.0, 3.0, 100.0]),
            feedback_total=2,
            feedback_correct=1,
        ),
    ),
    "health": Health(cpu_percent=5, memory_used=1, memory_total=2, agent_memory=1, disk_free=1, disk_total=2),
}


def test_records_are_stored_once_however_often_they_come(new_device: Any) -> None:
    device = new_device("teller")
    device.connect()
    device.send(device.batch(1, 2, nonce="first", **WINDOW))
    ack = device.next_ack()
    assert (ack.boot, ack.stored, ack.nonce, ack.desired_seq) == ("boot-1", 2, "first", 1)

    device.send(device.batch(1, 2, nonce="again", **WINDOW))
    assert device.next_ack().nonce == "again"
    device.send(device.batch(2, 3, nonce="overlap", **WINDOW))
    assert device.next_ack().stored == 3
    device.boot = "boot-2"
    device.send(device.batch(1, nonce="boot", **WINDOW))
    assert device.next_ack().stored == 1

    stats = device.view()["stats"]
    assert (stats["records"], stats["duplicates"]) == (4, 3)
    assert (stats["requests"], stats["errors"]) == (16, 4)
    assert (stats["feedback_total"], stats["feedback_correct"]) == (8, 4)
    assert 1.9 < stats["latency_p50_ms"] < 2.1
    assert 98 < stats["latency_p99_ms"] < 102
    assert device.view()["health"]["cpu_percent"] == 5


def test_a_batch_of_another_key_is_noted_and_neither_stored_nor_acknowledged(new_device: Any) -> None:
    """Attack: forged telemetry."""
    device, other = new_device("honest"), new_device("liar")
    device.connect()
    device.send(device.batch(1, nonce="forged"), signer=other.signer)
    device.send(device.batch(1, nonce="true"))
    assert device.next_ack().nonce == "true"
    assert device.view()["stats"]["records"] == 1
    assert "not signed by the key" in device.view()["security"][0]["reason"]


def test_a_batch_that_names_another_device_is_refused(new_device: Any) -> None:
    """Attack: a device replays what another signed."""
    device, other = new_device("one"), new_device("two")
    other.connect()
    other.say(topics.Telemetry(other.id), device.batch(1), signer=other.signer)
    until(lambda: other.view()["security"], what="a security event")
    assert device.view()["stats"]["records"] == other.view()["stats"]["records"] == 0


def test_a_number_that_cannot_be_is_refused_and_the_next_batch_is_stored(new_device: Any) -> None:
    """Attack: counts that would overflow the sums of the database."""
    device = new_device("boaster")
    device.connect()
    for n in (1 << 70, 1 << 62):
        device.send(device.batch(1, inference=(replace(WINDOW["inference"][0], requests=n),)))
    device.send(device.batch(1 << 70))
    device.send(device.batch(1, nonce="true", **WINDOW))
    assert device.next_ack().nonce == "true"
    assert (device.view()["stats"]["requests"], len(device.view()["security"])) == (4, 3)
    assert "Traceback" not in device.fleet.log


def test_a_device_that_boasts_for_long_does_not_hide_all_others(tmp_path: Path) -> None:
    """Attack: each count is allowed, and their sums grow beyond what the database and the list of devices take."""
    with closing(Database.in_folder(tmp_path)) as database, database.transaction() as session:
        device = Device(id="boaster", profile="x86-64", created="", token_hash="", token_expires="")
        session.add(device)
        session.flush()
        stats = DeviceStats(device=device.id, requests=(1 << 63) - 2, latency=json.dumps({"buckets": {"3": 1 << 62}}))
        session.add(stats)
        session.flush()
        large = replace(WINDOW["inference"][0], requests=telemetry.MOST, latency_ms=Sketch(buckets={"3": 1 << 40}))
        records = tuple(TelemetryRecord(seq=n, start=TIME, end=TIME, inference=(large,) * 9) for n in range(1, 9))
        batch = TelemetryBatch(device=device.id, boot="b", starts=1, sent=1, nonce="n", records=records)
        telemetry.store(session, device, batch, datetime.now(UTC), epoch=1)
        session.expire_all()
        assert device_views.view(session, device, DEAF)["stats"]["requests"] == telemetry.FULL


def test_records_stored_by_a_fleet_that_was_killed_before_it_could_acknowledge_stand_once(
    tmp_path: Path, enrolling: Any
) -> None:
    """Accident: SIGKILL between commit and acknowledgement; every batch is then sent again, over and over."""
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        device = new_device("persistent")
        device.connect()
        for _ in range(3):
            for first in range(1, 40, 2):
                device.client.publish(
                    topics.Telemetry(device.id).topic,
                    seal(device.batch(first, first + 1, **WINDOW), device.signer),
                    qos=1,
                )
            until(lambda: device.view()["stats"]["records"], what="the first record")
            fleet.kill()
            fleet.start()
            until(device.client.is_connected, what="the connection")
        for first in range(1, 40, 2):
            nonce = f"last-{first}"
            device.send(device.batch(first, first + 1, nonce=nonce, **WINDOW))
            while device.next_ack().nonce != nonce:
                pass
        stats = device.view()["stats"]
        assert (stats["records"], stats["requests"]) == (40, 160)


def test_a_recorded_batch_sent_again_is_refused_and_not_even_counted(new_device: Any) -> None:
    """Attack: who could read the topic once replays an old batch of the device."""
    device = new_device("recorded")
    device.connect()
    old = device.batch(1, nonce="old", **WINDOW)
    device.send(old)
    device.send(device.batch(2, nonce="new", **WINDOW))
    device.send(old)
    event = until(lambda: device.view()["security"], what="a security event")[-1]
    assert "1.2 came before" in event["reason"]
    assert [device.next_ack().nonce, device.next_ack().nonce] == ["old", "new"]
    stats = device.view()["stats"]
    assert (stats["records"], stats["duplicates"]) == (2, 0)


def test_a_batch_that_mqtt_delivers_twice_is_acknowledged_twice_and_counted_once(new_device: Any) -> None:
    device = new_device("twice")
    device.connect()
    batch = device.batch(1, nonce="same", **WINDOW)
    for _ in range(2):
        device.send(batch)
    first, second = device.next_ack(), device.next_ack()
    assert (first.nonce, first.stored) == (second.nonce, second.stored) == ("same", 1)
    assert second.seq == first.seq + 1
    stats = device.view()["stats"]
    assert (stats["records"], stats["duplicates"], device.view()["security"]) == (1, 0, [])


def test_another_batch_of_the_same_number_is_refused_so_that_no_record_is_acknowledged_unstored(
    new_device: Any,
) -> None:
    """Attack: a clone of the device's disk, key and all, sends from another machine."""
    device = new_device("cloned")
    device.connect()
    device.send(device.batch(1, nonce="mine", **WINDOW))
    device.sent -= 1
    device.send(device.batch(2, nonce="clone", **WINDOW))
    event = until(lambda: device.view()["security"], what="a security event")[-1]
    assert "two machines use this identity" in event["reason"]
    device.send(device.batch(3, nonce="next"))
    assert [device.next_ack().nonce, device.next_ack().nonce] == ["mine", "next"]


def test_a_start_that_is_newer_sends_on_and_the_one_before_it_is_refused(new_device: Any) -> None:
    """Attack: an image of the device's disk from an earlier day is started somewhere."""
    device = new_device("imaged")
    device.connect()
    device.starts, device.boot = 7, "boot-7"
    device.send(device.batch(1, nonce="seventh"))
    assert device.next_ack().nonce == "seventh"
    device.starts, device.boot, device.sent = 6, "boot-6", 900
    device.send(device.batch(1, nonce="sixth"))
    event = until(lambda: device.view()["security"], what="a security event")[-1]
    assert "telemetry 6.901" in event["reason"]
    assert device.view()["stats"]["records"] == 1


def test_an_acknowledgement_is_an_order_with_dates_that_rises_and_answers_reports_too(new_device: Any) -> None:
    device = new_device("answered")
    device.connect()
    device.send(device.batch(1, nonce="batch"))
    of_batch = device.next_ack()
    report = device.report()
    of_report = device.answer_to(report)
    assert (of_report.nonce, of_report.boot, of_report.stored) == (report.nonce, "boot-1", 0)
    assert of_report.number > of_batch.number
    assert (of_report.desired_epoch, of_report.desired_seq) == (1, 1)
    lifetime = instant(of_report.expires) - instant(of_report.issued)
    assert lifetime == timedelta(minutes=10)
    assert abs(of_report.time - datetime.now(UTC)) < timedelta(seconds=60)


def test_a_flood_of_one_device_costs_neither_disk_nor_memory_nor_the_others(tmp_path: Path, enrolling: Any) -> None:
    """Attack: a device sends as fast as it can; most of it is dropped before anything looks at it."""
    settings = {"mqtt_rate": 10}
    with FleetProcess(tmp_path / "fleet", **settings) as fleet, enrolling(fleet, tmp_path) as new_device:
        initialise_trust(fleet)
        loud, quiet = new_device("loud"), new_device("quiet")
        loud.connect()
        quiet.connect()
        topic, rubbish = topics.Telemetry(loud.id).topic, b"x" * 20_000
        memory = psutil.Process(fleet.pid).memory_info().rss
        for round_ in range(6):
            for _ in range(500):
                loud.client.publish(topic, rubbish, qos=0)
            quiet.send(quiet.batch(round_ + 1, nonce=f"round-{round_}"))
            assert quiet.next_ack().nonce == f"round-{round_}"
        security = until(
            lambda: (events := loud.view()["security"]) and any("flood:" in e["reason"] for e in events) and events,
            what="the flood in the security events",
        )
        assert len(security) <= AT_ONCE + 5, "each event is a write to the disk"
        assert psutil.Process(fleet.pid).memory_info().rss - memory < 60 * 1024 * 1024
        assert quiet.view()["stats"]["records"] == 6
        assert quiet.view()["security"] == []


def test_the_status_adds_up_all_devices(fleet: FleetProcess, new_device: Any) -> None:
    for device in (new_device("one-of-all"), new_device("another-of-all")):
        device.connect()
        for _ in range(2):  # the second time they are duplicates
            device.send(device.batch(1, 2, **WINDOW))
            assert device.next_ack().stored == 2
    views = fleet.api("GET", "/api/v1/devices")
    telemetry = fleet.api("GET", "/api/v1/status")["telemetry"]
    assert telemetry["records"] == sum(v["stats"]["records"] for v in views) >= 4
    assert telemetry["duplicates"] == sum(v["stats"]["duplicates"] for v in views) >= 4
