from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from trust_repository import new_signer

from agent.store.state import StateFile
from agent.trust.clock import WRITE_EVERY, Clock
from wire import topics

TRUE = datetime(2026, 11, 22, 8, tzinfo=UTC)
FAR = TRUE + timedelta(days=365)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
HEREAFTER = datetime(2100, 1, 1, tzinfo=UTC)


class Machine:
    """A machine's two clocks, moved by hand."""

    def __init__(self, wall: datetime) -> None:
        self.wall = wall
        self.uptime = 1000.0

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.uptime += seconds

    def clock(self, state: StateFile) -> Clock:
        return Clock(state, wall=lambda: self.wall, monotonic=lambda: self.uptime)


@pytest.fixture
def state(tmp_path):
    file = StateFile.open(tmp_path / "agent.db")
    yield file
    file.close()


@pytest.mark.parametrize("wall", [BEGINNING, HEREAFTER])
def test_a_clock_that_is_decades_off_is_right_from_the_first_answer_on_and_after_a_restart(state, wall) -> None:
    machine = Machine(wall)
    clock = machine.clock(state)
    assert clock.signed() == BEGINNING
    assert clock.learn(TRUE, latest=FAR)
    machine.passes(10)
    assert clock.now() == clock.signed() == TRUE + timedelta(seconds=10)
    again = machine.clock(state)
    assert again.signed() == TRUE
    assert again.now() == max(wall + timedelta(seconds=10), TRUE)


def test_a_wall_clock_that_jumps_while_the_agent_runs_moves_nothing(state) -> None:
    machine = Machine(TRUE)
    clock = machine.clock(state)
    assert not clock.learn(TRUE, latest=FAR)
    for jump in (BEGINNING, HEREAFTER):
        machine.wall = jump
        assert clock.now() == TRUE


def test_trusted_time_is_never_below_the_newest_signed_time(state) -> None:
    """Accident: the fleet's own clock is set back by ten minutes, or an older server answers."""
    machine = Machine(TRUE)
    clock = machine.clock(state)
    clock.learn(TRUE, latest=FAR)
    clock.learn(TRUE - timedelta(minutes=10), latest=FAR)
    assert clock.now() == TRUE
    machine.passes(660)
    assert clock.now() == TRUE + timedelta(minutes=1)


def test_a_stolen_fleet_key_moves_time_no_further_than_the_root_metadata_lasts(state) -> None:
    """Attack: an answer of the year 9999; counting on from it must not fail either."""
    clock = Machine(TRUE).clock(state)
    clock.learn(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), latest=FAR)
    assert clock.now() == state.newest_time() == FAR
    machine = Machine(TRUE)
    clock = machine.clock(state)
    clock.learn(datetime.max.replace(tzinfo=UTC), latest=datetime.max.replace(tzinfo=UTC))
    machine.passes(3600)
    assert clock.now().year == 9000


def test_the_newest_time_is_written_at_most_once_a_minute_unless_it_jumps(state, monkeypatch) -> None:
    written: list[datetime] = []
    note = state.note_time
    monkeypatch.setattr(state, "note_time", lambda when: (written.append(when), note(when)))
    machine = Machine(TRUE)
    clock = machine.clock(state)
    for second in range(int(WRITE_EVERY)):
        clock.learn(TRUE + timedelta(seconds=second), latest=FAR)
        machine.passes(1)
    assert written == [TRUE]
    clock.learn(TRUE + timedelta(seconds=60), latest=FAR)
    clock.learn(TRUE + timedelta(hours=2), latest=FAR)
    assert written[1:] == [TRUE + timedelta(seconds=60), TRUE + timedelta(hours=2)]


def test_a_disk_that_takes_no_time_does_not_keep_the_clock_from_learning_it(state) -> None:
    """Accident: the disk is full."""
    state._db.execute("CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    clock = Machine(BEGINNING).clock(state)
    assert clock.learn(TRUE, latest=FAR)
    assert (clock.now(), state.newest_time()) == (TRUE, BEGINNING)


# --- a whole device ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", [BEGINNING, HEREAFTER])
def test_a_device_at_1970_or_2100_learns_the_time_and_installs(new_device, sim, bundles, wall) -> None:
    """Accident: a board without a battery starts with its clock decades off; no false alarm comes of it."""

    async def story() -> None:
        device = new_device(wall=lambda: wall)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        assert abs(device.clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
        assert device.trust()["time"] == "signed"
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_device_at_2100_follows_a_new_fleet_key_that_alone_can_tell_it_the_time(new_device, sim, bundles) -> None:
    """Accident: the fleet key was rotated while the device was off, and its clock stands at 2100 when it returns."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.clock.learnt)
        await device.stop()
        sim.repo.keys["fleet"] = [new_signer()]
        sim.repo.sign_targets()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        again = new_device(wall=lambda: HEREAFTER)
        again.connect()
        await again.until_phase("committed")
        assert again.events == []
        await again.stop()

    asyncio.run(story())


def test_a_desired_state_that_only_this_clock_calls_expired_waits_for_the_time_and_is_no_attack(
    new_device, sim, bundles
) -> None:
    async def story() -> None:
        device = new_device(wall=lambda: HEREAFTER)
        sim.faults.mute = True
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("mute", 0) >= 2)
        await device.until(lambda: device.inbox._judge_due is None)
        assert (device.installer.updates(), device.events) == ((), [])
        sim.faults.mute = False
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_desired_state_that_expired_by_signed_time_is_refused(new_device, sim, bundles) -> None:
    """Attack: somebody kept a desired state back until the fleet did not mean it any more."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.ahead = timedelta(days=-2)
        sim.desire(bundles["one"])
        sim.ahead = timedelta(0)
        device.connect()
        await device.until(lambda: device.events != [])
        assert device.events[0][0] == "desired state"
        assert "expired" in device.events[0][1]
        assert device.installer.updates() == ()
        await device.stop()

    asyncio.run(story())


def test_metadata_that_expired_blocks_the_new_install_and_not_the_running_model(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        sim.release(bundles["two"])
        sim.ahead = timedelta(days=31)
        sim.desire(bundles["two"], rollout="r2")
        device.core.reporter.soon()
        await device.until(lambda: device.clock.now() > sim.repo.expires)
        device.hear_retained()
        await device.until(lambda: "expired" in device.phases().get("fetching", ""))
        answer = await device.service.infer("kitchen", ("turn the light on",))
        assert answer.digest == bundles["one"].digest
        sim.repo.expires = sim.now() + timedelta(days=30)
        sim.repo.sign_targets()
        sim.repo.sign_release()
        device.hear_retained()
        await device.until(lambda: device.active() == [bundles["two"].digest])
        await device.stop()

    asyncio.run(story())


def test_time_that_a_stolen_fleet_key_moved_ahead_is_recovered_by_rotating_the_online_keys(
    new_device, sim, bundles
) -> None:
    """Attack: whoever stole the fleet key says that it is years later: everything is expired, and stays so on disk."""

    async def story() -> None:
        device = new_device()
        sim.ahead = timedelta(days=4000)
        device.connect()
        await device.until(lambda: device.clock.learnt)
        assert device.clock.now() >= device.keeper.trusted.root.expires
        await device.until(lambda: [subject for subject, _ in device.events] == ["time"])
        sim.ahead = timedelta(0)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: "desired state" in [subject for subject, _ in device.events])
        await device.stop()
        assert device.installer.updates() == ()

        again = new_device()
        assert again.clock.now() > datetime.now(UTC) + timedelta(days=300)
        again.connect()
        await again.until(lambda: again.clock.learnt)
        for role in ("timestamp", "snapshot", "fleet"):
            sim.repo.keys[role] = [new_signer()]
        sim.repo.expires += timedelta(days=365)
        sim.repo.sign_root()
        sim.repo.expires -= timedelta(days=365)
        sim.repo.sign_targets()
        sim.repo.publish()
        sim.desire(bundles["one"])
        again.hear_retained()
        await again.until_phase("committed")
        assert abs(again.clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
        assert again.state.newest_time() < datetime.now(UTC) + timedelta(minutes=1)
        await again.stop()

    asyncio.run(story())


def test_a_rotated_out_fleet_key_does_not_move_the_time_again_while_the_new_metadata_is_kept_back(
    new_device, sim
) -> None:
    """Attack: whoever stole the fleet key owns the broker too, and lets the new root through, but no new targets."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: device.clock.learnt)
        stolen = sim.repo.keys["fleet"]
        for role in ("timestamp", "snapshot", "fleet"):
            sim.repo.keys[role] = [new_signer()]
        sim.repo.sign_root()
        sim.repo.sign_targets()
        sim.repo.publish()
        fresh, sim.repo.keys["fleet"], sim.ahead = sim.repo.keys["fleet"], stolen, timedelta(days=300)
        device.link._retained = lambda: None
        for name in ("timestamp", "snapshot"):
            device.hear(topics.TrustRole(name), sim.repo.documents[name])
        device.hear(topics.TrustRoot(2), sim.repo.roots[2])
        await device.until(lambda: device.keeper.trusted.root_version == 2)
        before = len(sim.acks)
        device.core.reporter.soon()
        await device.until(lambda: len(sim.acks) > before and device.core.reporter._nonce == "")
        assert not device.clock.learnt
        assert device.clock.now() < datetime.now(UTC) + timedelta(minutes=1)
        sim.repo.keys["fleet"], sim.ahead = fresh, timedelta(0)
        device.hear_retained()
        await device.until(lambda: device.clock.learnt)
        await device.stop()

    asyncio.run(story())


def test_what_was_refused_under_a_time_that_is_void_is_asked_for_again(new_device, sim) -> None:
    """The documents that were refused as expired are not sent again by the fleet: the device asks for them."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: "targets" in device.keeper.trusted.versions())
        sim.ahead = timedelta(days=60)
        device.core.reporter.soon()
        await device.until(lambda: device.clock.now() > sim.repo.expires)
        sim.repo.sign_targets()
        sim.repo.publish()
        device.hear_retained()
        await device.until(lambda: "timestamp" in [subject for subject, _ in device.events])
        sim.ahead = timedelta(0)
        sim.repo.keys["timestamp"] = [new_signer()]
        sim.repo.sign_root()
        sim.repo.publish()
        newest = max(sim.repo.roots)
        device.hear(topics.TrustRoot(newest), sim.repo.roots[newest])  # and nothing else
        await device.until(lambda: device.keeper.trusted.versions().get("targets") == 2)
        await device.stop()

    asyncio.run(story())
