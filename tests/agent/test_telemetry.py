from __future__ import annotations

import asyncio

import numpy as np
import pytest
from trust_repository import new_signer

from agent.errors import NotFound, Unavailable
from agent.life.telemetry import RECENT_ANSWERS, WindowMeter
from wire import topics
from wire.messages import Presence
from wire.processing import Result

DIGEST = "sha256:" + "1" * 64


def prediction(label: str = "light-on", score: float = 0.9) -> Result:
    return Result({"scores": np.asarray([score])}, (label,))


def test_a_window_counts_by_model_and_digest_and_holds_no_text() -> None:
    meter = WindowMeter()
    for i in range(1000):
        meter.answered("kitchen", DIGEST, 2.0, (prediction("light-on" if i % 4 else "music"),))
    meter.failed("kitchen", DIGEST)
    meter.remember("r1", "kitchen", DIGEST, "light-on")
    meter.remember("r2", "kitchen", DIGEST, "music")
    assert meter.feedback("r1", "light-on") is True
    assert meter.feedback("r2", "light-on") is False
    (stats,) = meter.close()
    assert (stats.requests, stats.errors, stats.labels) == (1001, 1, {"light-on": 750, "music": 250})
    assert stats.latency_ms.quantile(0.5) == pytest.approx(2.0, rel=0.02)
    assert stats.confidence.bins[18] == 1000
    assert (stats.feedback_total, stats.feedback_correct) == (2, 1)
    assert meter.close() == ()


def test_feedback_counts_once_and_only_for_recent_answers() -> None:
    meter = WindowMeter()
    for i in range(RECENT_ANSWERS + 1):
        meter.remember(f"r{i}", "kitchen", DIGEST, "music")
    meter.feedback("r5", "music")
    for gone in ("r0", "r5", "never"):
        with pytest.raises(NotFound, match="not among the last"):
            meter.feedback(gone, "music")


def test_every_record_arrives_although_acks_are_lost_and_none_is_forgotten_before(new_device, sim) -> None:
    """Accident: the acknowledgements of three batches are lost, and the line goes down in between."""
    sim.faults.lose_acks = 3

    async def story() -> None:
        device = new_device()
        for _ in range(5):
            device.recorder.close_window()
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost ack", 0) == 2)
        assert device.state.telemetry()["waiting"] == 5
        device.disconnect()
        device.recorder.close_window()
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert sim.faults.fired["lost ack"] == 3
        assert sorted(seq for _, seq in sim.records) == [1, 2, 3, 4, 5, 6]
        assert device.state.telemetry() == {"produced": 6, "delivered": 6, "merged": 0, "dropped": 0, "waiting": 0}
        await device.stop()

    asyncio.run(story())


def test_records_of_an_earlier_boot_are_delivered_after_a_restart(new_device, sim) -> None:
    async def story() -> None:
        device = new_device()
        device.recorder.close_window()
        await device.stop()
        again = new_device()
        again.recorder.close_window()
        again.connect()
        await again.until(lambda: again.state.telemetry()["waiting"] == 0)
        assert len({boot for boot, _ in sim.records}) == 2
        await again.stop()

    asyncio.run(story())


def test_a_forged_acknowledgement_forgets_nothing(new_device, sim) -> None:
    """Attack: an Ack signed by another key than the fleet's."""
    fleet = sim.repo.keys["fleet"]

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: "targets" in device.keeper.trusted.versions())
        sim.repo.keys["fleet"] = [new_signer()]
        device.recorder.close_window()
        device.outbox.kick()
        await device.until(lambda: ("acknowledgement") in [subject for subject, _ in device.events])
        assert [one.delivered for one in device.state.ledger()] == [0, 0, 0]
        sim.repo.keys["fleet"] = fleet
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        await device.stop()

    asyncio.run(story())


def test_many_models_with_many_labels_still_fit_in_batches_that_the_fleet_takes(new_device, sim) -> None:
    """Accident: a window with twelve models of a thousand labels; one record of all would be refused for ever."""

    async def story() -> None:
        device = new_device()
        for model in range(12):
            labels = tuple(prediction(f"a-label-of-thirty-characters-{i}") for i in range(1000))
            device.meter.answered(f"model-{model}", DIGEST, 2.0, labels)
        device.recorder.close_window()
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert len(sim.records) > 1
        assert max(len(payload) for topic, payload in device.link.published if "telemetry" in topic) < 64 * 1024
        await device.stop()

    asyncio.run(story())


def test_a_record_that_the_disk_did_not_take_is_stored_the_next_time(new_device, sim) -> None:
    """Accident: the disk is full for one window."""

    async def story() -> None:
        device = new_device()
        device.state._db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON telemetry BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        device.meter.answered("kitchen", DIGEST, 2.0, (prediction(),))
        with pytest.raises(Unavailable, match="disk full"):
            device.recorder.close_window()
        device.state._db.execute("DROP TRIGGER full")
        device.recorder.close_window()
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert sorted(seq for _, seq in sim.records) == [1, 2, 3, 4]
        streams = {record.seq: record.stream for record in sim.kept}
        assert streams == {1: "inference", 2: "health", 3: "health", 4: "event"}
        assert "nothing could be kept from" in sim.kept[0].events[0].text, "the alarm is sent first"
        await device.stop()

    asyncio.run(story())


def test_a_record_that_the_disk_changed_is_given_up_and_counted_and_holds_up_no_other(new_device, sim) -> None:
    """Accident: flipped bits in the queue; the first record that could not be read ended all telemetry for ever."""

    async def story() -> None:
        device = new_device()
        for _ in range(3):
            device.recorder.close_window()
        device.state._db.execute("UPDATE telemetry SET record = x'ff' WHERE seq < 3")
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert [seq for _, seq in sim.records] == [3]
        counts = device.state.telemetry()
        assert (counts["produced"], counts["dropped"], counts["delivered"]) == (3, 2, 1)
        await device.stop()

    asyncio.run(story())


def test_a_batch_that_nobody_answers_is_sent_ever_more_seldom(new_device, sim) -> None:
    """Accident: the fleet takes batches and answers none: a batch every ten seconds is half a gigabyte a day."""

    async def story() -> None:
        device = new_device(ack_timeout=0.05)
        sim.faults.mute = True
        device.recorder.close_window()
        device.connect()
        await device.until(lambda: device.outbox._pause >= 0.8)
        assert sum("telemetry" in topic for topic, _ in device.link.published) <= 6
        sim.faults.mute = False
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert device.outbox._pause == 0.05
        device.recorder.close_window()
        sim.faults.mute = True
        device.outbox.kick()
        device.outbox._pause = 300
        device.outbox._unanswered()
        for online in (False, True):  # the fleet was restarted: it is not kept waiting for the pause to end
            device.inbox.take(topics.FleetState().topic, Presence(session="f1", online=online).to_bytes())
            sim.faults.mute = False
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        await device.stop()

    asyncio.run(story())


def test_nothing_is_sent_while_the_fleet_is_away(new_device, sim) -> None:
    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.outbox.open)
        death = Presence(session="f1", online=False).to_bytes()
        device.inbox.take(topics.FleetState().topic, death)
        device.recorder.close_window()
        device.outbox.kick()
        assert sim.records == {}
        assert device.state.telemetry()["waiting"] == 1
        await device.stop()

    asyncio.run(story())
