from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet_process import FleetProcess, Publisher, initialise_trust, until

from wire import topics
from wire.dsse import seal
from wire.messages import Health, InferenceStats
from wire.sketch import Sketch

DIGEST = "sha256:" + "0" * 64
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


def test_a_flood_of_forgeries_keeps_the_newest_only(new_device: Any) -> None:
    device = new_device("flooded")
    device.connect()
    for i in range(120):
        device.publish(topics.Telemetry(device.id).topic, f"not an envelope {i}".encode())
    device.send(device.batch(1))
    device.next_ack()
    assert len(device.view()["security"]) == 100


def test_the_status_adds_up_all_devices(fleet: FleetProcess, publisher: Publisher) -> None:
    views = fleet.api("GET", "/api/v1/devices")
    telemetry = fleet.api("GET", "/api/v1/status")["telemetry"]
    assert telemetry["records"] == sum(v["stats"]["records"] for v in views) > 0
    assert telemetry["duplicates"] == sum(v["stats"]["duplicates"] for v in views)
