from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from trust_repository import new_signer

from agent.store.state import StateFile
from agent.trust.acks import ANSWERED, EARLIER_START, MOST, Acks
from agent.trust.clock import Clock
from wire import topics
from wire.errors import Untrusted
from wire.trust import TrustedSet

BOOT = "boot-2"


class Asking:
    """The nonces of a device with a fleet, and time that a test moves."""

    def __init__(self, sim, state: StateFile) -> None:
        self.sim = sim
        self.at = 1000.0
        trusted = TrustedSet.from_root(sim.repo.roots[1])
        assert not trusted.offer(sim.repo.offered(), sim.now())
        clock = Clock(state, monotonic=lambda: self.at)
        self.asked: list[float] = []
        self.acks = Acks(device="kitchen-1", boot=BOOT, trusted=trusted, clock=clock, on_ask=self.asked.append)


@pytest.fixture
def asking(sim, tmp_path):
    state = StateFile.open(tmp_path / "agent.db")
    yield Asking(sim, state)
    state.close()


def test_an_answer_to_a_nonce_that_waits_is_believed_once(asking, sim) -> None:
    """Attack: the same answer again, rightly signed."""
    nonce = asking.acks.ask()
    answer = sim.ack(nonce, BOOT, stored=7)
    taken = asking.acks.take(answer)
    assert taken is not None
    assert (taken.stored, asking.asked) == (7, [1000.0])
    asking.at += EARLIER_START
    with pytest.raises(Untrusted, match="answers nothing that waits: a replay"):
        asking.acks.take(answer)


def test_an_answer_to_another_nonce_is_refused(asking, sim) -> None:
    """Attack: yesterday's answer, or one to a nonce that somebody made up."""
    asking.acks.ask()
    with pytest.raises(Untrusted, match="answers nothing"):
        asking.acks.take(sim.ack("made-up", BOOT))
    asking.at += EARLIER_START
    with pytest.raises(Untrusted, match="answers nothing"):
        asking.acks.take(sim.ack("of-yesterday", "boot-1"))


def test_an_answer_that_comes_later_than_it_lasts_is_refused_whatever_any_clock_says(asking, sim) -> None:
    """Attack: an answer is kept back, to hold this device's time in the past."""
    nonces = [asking.acks.ask(), asking.acks.ask()]
    first, second = (sim.ack(nonce, BOOT) for nonce in nonces)
    asking.at += 599
    assert asking.acks.take(first) is not None
    asking.at += 1
    with pytest.raises(Untrusted, match="600 s after its nonce was sent: too late"):
        asking.acks.take(second)


def test_an_answer_under_an_older_number_than_the_last_is_refused(asking, sim) -> None:
    nonces = [asking.acks.ask(), asking.acks.ask()]
    old, new = (sim.ack(nonce, BOOT) for nonce in nonces)
    assert asking.acks.take(new) is not None
    with pytest.raises(Untrusted, match=r"not above 1\.2"):
        asking.acks.take(old)


def test_an_answer_to_another_device_or_by_another_key_is_refused(asking, sim) -> None:
    nonce = asking.acks.ask()
    with pytest.raises(Untrusted, match="sent to kitchen-1"):
        asking.acks.take(sim.ack(nonce, BOOT, device="other"))
    sim.repo.keys["fleet"] = [new_signer()]
    with pytest.raises(Untrusted, match="not signed by the fleet's current key"):
        asking.acks.take(sim.ack(nonce, BOOT))


def test_an_answer_to_the_start_before_this_one_is_no_attack_for_a_minute(asking, sim) -> None:
    """Accident: the agent was restarted while the fleet answered."""
    assert asking.acks.take(sim.ack("nonce-of-it", "boot-1")) is None
    asking.at += EARLIER_START
    with pytest.raises(Untrusted):
        asking.acks.take(sim.ack("nonce-of-it", "boot-1"))


def test_a_second_answer_to_one_question_is_no_attack_and_says_nothing(asking, sim) -> None:
    """Accident: the line brings a report twice, and the fleet answers both copies."""
    nonce = asking.acks.ask()
    first, second = (sim.ack(nonce, BOOT) for _ in range(2))
    assert asking.acks.take(first) is not None
    assert asking.acks.take(second) is None
    for _ in range(ANSWERED):
        asking.acks.take(sim.ack(asking.acks.ask(), BOOT))
    with pytest.raises(Untrusted, match="a replay"):
        asking.acks.take(sim.ack(nonce, BOOT))


def test_nonces_that_nobody_answers_take_a_bounded_room(asking) -> None:
    for _ in range(10 * MOST):
        asking.acks.ask()
    assert len(asking.acks._waiting) == MOST


# --- a whole device ---------------------------------------------------------------------------------------------------


def test_a_replayed_answer_is_a_security_event_and_moves_nothing(new_device, sim) -> None:
    """Attack: an answer of an hour ago, rightly signed, is sent again to hold the device back."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.clock.learnt)
        old = sim.acks[-1]
        sim.ahead = timedelta(hours=1)
        device.core.reporter.soon()
        await device.until(lambda: device.clock.now() > sim.now() - timedelta(minutes=1))
        device.hear(topics.Ack("kitchen-1"), old)
        await device.until(lambda: [subject for subject, _ in device.events] == ["acknowledgement"])
        assert "a replay" in device.events[0][1]
        assert device.clock.now() > sim.now() - timedelta(minutes=1)
        await device.stop()

    asyncio.run(story())


def test_an_answer_that_comes_before_the_metadata_that_names_its_key_is_believed_after_it(new_device, sim) -> None:
    """Accident: the fleet key was rotated while the device was off, and the answer overtakes the metadata."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.clock.learnt)
        await device.stop()
        sim.repo.keys["fleet"] = [new_signer()]
        sim.repo.sign_targets()
        sim.repo.publish()
        again = new_device()
        again.link._retained = lambda: None  # what is retained comes late
        again.connect()
        await again.until(lambda: len(again.inbox._early) == 1)
        assert not again.clock.learnt
        again.hear_retained()
        await again.until(lambda: again.clock.learnt)
        assert again.events == []
        await again.stop()

    asyncio.run(story())


def test_everything_a_device_says_carries_a_number_that_rises_over_restarts(new_device, sim) -> None:
    async def story() -> None:
        for start in (1, 2, 3):
            device = new_device()
            device.recorder.close_window()
            device.connect()
            await device.until(lambda device=device: device.state.telemetry()["waiting"] == 0)
            await device.until(lambda start=start: bool(sim.reports) and sim.reports[-1].starts == start)
            await device.stop()
        assert sim.replays == []
        assert {kind.__name__: number[0] for kind, number in sim.numbers.items()} == {
            "Reported": 3,
            "TelemetryBatch": 3,
        }

    asyncio.run(story())


def test_a_device_that_cannot_count_its_start_says_nothing_until_it_can(new_device, sim) -> None:
    """Accident: the disk is full at the start: an old number under a new boot would look like a clone."""

    async def story() -> None:
        device = new_device(ack_timeout=0.1)
        device.state._db.execute("CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'full'); END")
        device.recorder._state = None  # nothing else writes
        device.connect()
        await device.until(lambda: device.core.reporter._pause > 0.2)
        assert sim.reports == []
        device.state._db.execute("DROP TRIGGER full")
        await device.until(lambda: [report.number for report in sim.reports[:1]] == [(1, 1)])
        device.recorder._state = device.state
        await device.stop()

    asyncio.run(story())
