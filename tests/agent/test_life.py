"""What a device tells of its own life: line, health, events, and the lines of its log without anything secret."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import Iterator

import pytest

from agent.life.ring import LINES, SENT_BYTES, TAKEN_OUT, Ring, clean
from agent.line.meter import LineMeter
from wire.messages import Health, MachineState, Reply

TIME = "2026-11-22T08:00:00.000Z"
DIGEST = "sha256:" + "ab" * 32


def events(sim) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for record in sim.kept for event in record.events]


def health(sim) -> Health:
    return [record.health for record in sim.kept if record.health is not None][-1]


def test_round_trips_are_of_the_window_and_reconnects_of_the_run() -> None:
    line = LineMeter()
    for seconds in (0.010, 0.020, 0.300):
        line.answered(seconds)
    for _ in range(3):
        line.went_up()
    line.unanswered()
    state = line.close()
    assert (state.rtt_ms, state.rtt_worst_ms, state.reconnects, state.unanswered) == (20.0, 300.0, 2, 1)
    later = line.close()
    assert (later.rtt_ms, later.reconnects) == (None, 2)


def test_health_tells_of_line_clock_and_uptime_through_the_telemetry(new_device, sim) -> None:
    """Accident: two acknowledgements are lost, and the line goes down once."""
    sim.faults.lose_acks = 2

    async def story() -> None:
        device = new_device()
        device.recorder.close_window()
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        device.disconnect()
        device.connect()
        await device.until(lambda: device.outbox.open)
        device.core.close_window()
        await device.until(lambda: len(sim.records) == 2)
        told = health(sim)
        assert told.line is not None
        assert (told.line.reconnects, told.line.unanswered >= 2) == (1, True)
        assert told.line.rtt_ms is not None
        assert told.uptime_s is not None
        assert told.uptime_s > 0
        assert told.clock_offset_s is not None
        assert abs(told.clock_offset_s) < 5
        await device.stop()

    asyncio.run(story())


def test_a_processor_that_is_held_down_is_an_event_once_until_it_is_let_go(new_device, sim) -> None:
    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.outbox.open)
        for throttled in (False, True, True, None, True):
            device.core.life._machine = MachineState(at=TIME, throttled=throttled)
            device.core.close_window()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert [kind for kind, _ in events(sim)] == ["throttled", "throttled"]
        assert health(sim).machine == MachineState(at=TIME, throttled=True)
        await device.stop()

    asyncio.run(story())


def test_an_update_that_fails_is_an_event_once_and_a_refusal_is_one(new_device, sim, bundles) -> None:
    """Accident: version 3 does not hold its golden set. Attack: a stranger's acknowledgement."""

    async def story() -> None:
        sim.release(bundles["broken"])
        device = new_device()
        await device.core.start()
        device.connect()
        sim.desire(bundles["broken"])
        device.hear_retained()
        await device.until_phase("failed")
        device.core.note_security("acknowledgement", "not signed by the fleet")
        await device.until(lambda: {kind for kind, _ in events(sim)} >= {"update", "security"})
        assert next(text for kind, text in events(sim) if kind == "update").startswith(bundles["broken"].target)
        assert ("security", "acknowledgement: not signed by the fleet") in events(sim)
        await device.stop()
        told = len([kind for kind, _ in events(sim) if kind == "update"])
        again = new_device()
        await again.core.start()
        again.connect()
        await again.until(lambda: again.state.telemetry()["waiting"] == 0)
        assert len([kind for kind, _ in events(sim) if kind == "update"]) == told
        await again.stop()

    asyncio.run(story())


def test_an_alarm_is_sent_at_once_and_before_the_samples_that_wait(new_device, sim) -> None:
    async def story() -> None:
        device = new_device()
        for _ in range(3):
            device.recorder.close_window()
        device.core.event("disk", "an event")
        device.connect()
        await device.until(lambda: device.state.telemetry()["waiting"] == 0)
        assert [record.stream for record in sim.kept] == ["event", "health", "health", "health"]
        await device.stop()

    asyncio.run(story())


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A ring on a logger of its own."""
    one, logger = Ring(), logging.getLogger("a-test")
    logger.setLevel(logging.INFO)
    logger.addHandler(one)
    yield one
    logger.removeHandler(one)


def test_nothing_secret_leaves_with_the_log(ring: Ring) -> None:
    log = logging.getLogger("a-test")
    kind = "PRIVATE" + " KEY"
    body, token, other = (base64.b64encode(bytes(range(start, start + 20))).decode() for start in (0, 40, 80))
    pem = f"-----BEGIN {kind}-----\n{body}\nsecret\n-----END {kind}-----"
    log.warning("a key: %s", pem)
    log.warning("Authorization: Bearer abc.def")
    log.warning("token=shoal_%s and %s", token, other)
    log.warning("the blob %s is here", DIGEST)
    try:
        int("turn on the light in the bedroom")
    except ValueError:
        log.exception("a request failed")
    lines = "\n".join(ring.newest())
    for secret in (body, "secret", "abc.def", token, other, "bedroom", "ab" * 20):
        assert secret not in lines
    assert lines.count(TAKEN_OUT) >= 4
    assert "sha256:abababababab is here" in lines
    assert "a request failed (ValueError at agent/test_life.py:" in lines


def test_the_log_that_is_sent_is_bounded_and_the_newest(ring: Ring) -> None:
    for i in range(3 * LINES):
        logging.getLogger("a-test").info("line %d of many %s", i, "word " * 80)
    lines = ring.newest()
    assert f"line {3 * LINES - 1} of many" in lines[-1]
    assert sum(len(line) for line in lines) <= SENT_BYTES
    Reply.from_bytes(Reply(device="a", epoch=1, seq=1, outcome="done", log=lines).to_bytes())


def test_the_log_is_not_read_while_a_thread_writes_to_it(ring: Ring) -> None:
    """Accident: a deque that grows while it is read raises, and no log was sent."""
    reading = threading.Thread(target=ring.newest)
    ring.acquire()
    try:
        reading.start()
        reading.join(0.2)
        assert reading.is_alive()
    finally:
        ring.release()
    reading.join()


def test_a_line_is_one_line() -> None:
    assert "\n" not in clean("one\ntwo")
    assert len(clean("word " * 1000)) == 300
