"""Attacks on what makes a device act, by whoever holds the line, a neighbour's device or a key that does not count."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from trust_repository import new_signer

from agent.store.queue import Queued
from wire import topics
from wire.dsse import seal
from wire.orders import Ack, Command, Desired, DesiredModel
from wire.units import show_instant

DEVICE, NEIGHBOUR = "kitchen-1", "kitchen-2"
SOON = 10.0
"""Seconds in which a refusal must show."""


@pytest.fixture
def attack(new_device, sim) -> Callable[..., None]:
    """Run an attack on a device that is connected and has learnt the time, and stop it."""

    def run(story: Callable[..., Awaitable[None]], **settings) -> None:
        async def play() -> None:
            device = new_device(**settings)
            device.connect()
            try:
                await device.until(lambda: device.clock.learnt)
                await story(device)
            finally:
                await device.stop()

        asyncio.run(play())

    return run


async def refused(device, subject: str, reason: str) -> None:
    """Exactly one security event, and this one."""
    await device.until(lambda: device.events, SOON)
    assert [s for s, _ in device.events] == [subject]
    assert reason in device.events[0][1]


def an_order(kind, *, device: str = DEVICE, seq: int = 1, life: float = 600, at: datetime | None = None, **fields):
    issued = at or datetime.now(UTC)
    expires = issued + timedelta(seconds=life)
    times = {"issued": show_instant(issued), "expires": show_instant(expires)}
    return kind(device=device, epoch=1, seq=seq, **times, **fields)


def empty_desired(**fields) -> Desired:
    """A desired state that would remove every model."""
    return an_order(Desired, models=(), **{"seq": 99, **fields})


# --- desired states


def test_a_forged_desired_state_is_refused(sim, attack) -> None:
    """Attack: forged desired state. The broker makes one of its own, with the key id of the fleet's key."""
    forger = new_signer()
    forger.public_key.keyid = sim.repo.keys["fleet"][0].public_key.keyid

    async def story(device) -> None:
        device.hear(topics.Desired(DEVICE), seal(empty_desired(), forger))
        await refused(device, "desired state", "not signed by the fleet's current key")
        assert device.state.last_desired() == (0, 0)

    attack(story)


def test_a_desired_state_by_a_rotated_out_fleet_key_is_refused(sim, attack) -> None:
    """Attack: a rotated-out fleet key. It was stolen, and the targets people have replaced it since."""
    stolen = sim.repo.keys["fleet"][0]

    async def story(device) -> None:
        sim.repo.keys["fleet"] = [new_signer()]
        sim.repo.sign_targets()
        sim.repo.publish()
        device.hear_retained()
        await device.until(lambda: device.keeper.trusted.documents["targets"] == sim.repo.documents["targets"])
        device.hear(topics.Desired(DEVICE), seal(empty_desired(), stolen))
        await refused(device, "desired state", "not signed by the fleet's current key")
        assert device.state.last_desired() == (0, 0)

    attack(story)


def test_a_replayed_desired_state_is_refused(sim, attack, bundles) -> None:
    """Attack: replayed desired state. The one that named no model is sent again once there is one."""
    old = sim.desire()
    sim.release(bundles["one"])
    sim.desire(bundles["one"])

    async def story(device) -> None:
        await device.until_phase("committed")
        device.hear(topics.Desired(DEVICE), old)
        await refused(device, "desired state", "not above 1.2")
        assert device.active() == [bundles["one"].digest]

    attack(story)


def test_another_devices_desired_state_is_refused(sim, attack) -> None:
    """Attack: another device's desired state, signed by the fleet and newer than this device's own."""

    async def story(device) -> None:
        device.hear(topics.Desired(DEVICE), sim.sign(empty_desired(device=NEIGHBOUR)))
        await refused(device, "desired state", "sent to kitchen-1")
        assert device.state.last_desired() == (0, 0)

    attack(story)


def test_a_desired_state_that_was_held_back_until_it_expired_is_refused(sim, attack) -> None:
    """Attack: freeze, then let go. Last year's wish must not be acted on because nothing newer came."""
    old = empty_desired(at=datetime.now(UTC) - timedelta(days=2))

    async def story(device) -> None:
        device.hear(topics.Desired(DEVICE), sim.sign(old))
        await refused(device, "desired state", "expired")
        assert device.state.last_desired() == (0, 0)

    attack(story)


def test_another_kind_of_statement_is_not_taken_for_a_desired_state(sim, attack) -> None:
    """Attack: type confusion. An acknowledgement that the fleet signed is sent as a desired state, with its fields."""
    fields = {"nonce": "n", "boot": "b", "stored": 0, "desired_epoch": 1, "desired_seq": 1}
    ack = an_order(Ack, seq=99, **fields, extra={"models": [], "keys": ""})

    async def story(device) -> None:
        device.hear(topics.Desired(DEVICE), sim.sign(ack))
        await refused(device, "desired state", "expected application/vnd.shoal.desired")
        assert device.state.last_desired() == (0, 0)

    attack(story)


# --- what the fleet's key alone cannot do


def test_a_desired_state_that_names_other_bytes_than_the_release_role_is_refused(sim, attack, bundles) -> None:
    """Attack: whoever has the fleet's machine names a listed path with a digest of their own."""
    sim.release(bundles["one"])
    model = DesiredModel(target=bundles["one"].target, digest=bundles["two"].digest)
    sim.bundles.append(bundles["two"])

    async def story(device) -> None:
        await device.until(lambda: "release-intents" in device.keeper.trusted.documents)
        desired = dataclasses.replace(empty_desired(), models=(model,))
        device.hear(topics.Desired(DEVICE), sim.sign(desired))
        await device.until(lambda: "refused" in device.phases(), SOON)
        assert "the release role" in device.phases()["refused"]

    attack(story)


def test_a_release_for_another_profile_is_not_installed(sim, attack, bundles) -> None:
    """Attack: a release that is good, and made for other hardware."""
    sim.release(bundles["one"])
    listed = sim.repo.releases[bundles["one"].target]
    sim.repo.releases[listed.target] = dataclasses.replace(listed, profile="raspberry-pi-4")
    sim.repo.sign_release()
    sim.desire(bundles["one"])

    async def story(device) -> None:
        await device.until(lambda: "failed" in device.phases(), SOON)
        assert "this device is x86-64" in device.phases()["failed"]

    attack(story)


def raise_floor(sim, bundle, *, counter: int, floor: int) -> None:
    sim.repo.releases[bundle.target] = dataclasses.replace(
        sim.repo.releases[bundle.target], counter=counter, floor=floor
    )
    sim.repo.sign_release()


async def hear_of(device, sim) -> None:
    device.hear_retained()
    await device.until(lambda: device.keeper.trusted.documents.items() >= sim.repo.documents.items())


def test_a_release_below_its_floor_is_not_installed(sim, attack, bundles) -> None:
    """Attack: downgrade. The fleet key names a release with a known fault that the release role has not delisted."""
    sim.release(bundles["one"])
    raise_floor(sim, bundles["one"], counter=1, floor=2)

    async def story(device) -> None:
        await hear_of(device, sim)
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: "refused" in device.phases(), SOON)
        assert "below the floor 2" in device.phases()["refused"]

    attack(story)


def test_a_floor_outlives_the_release_that_named_it(sim, attack, bundles) -> None:
    """Attack: downgrade after the release with the floor was withdrawn, and the agent was started again."""
    sim.release(bundles["one"])
    sim.release(bundles["two"], counter=2)
    raise_floor(sim, bundles["two"], counter=2, floor=2)

    async def story(device) -> None:
        await hear_of(device, sim)
        assert device.state.floor("intents/kitchen") == 2
        del sim.repo.releases[bundles["two"].target]
        sim.repo.sign_release()
        await hear_of(device, sim)
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: "refused" in device.phases(), SOON)
        assert "below the floor 2" in device.phases()["refused"]

    attack(story)


def test_a_lower_floor_does_not_take_the_place_of_a_higher_one(sim, attack, bundles) -> None:
    """Attack: one person who may sign releases lowers the floor, to install what was killed."""
    sim.release(bundles["one"])
    raise_floor(sim, bundles["one"], counter=5, floor=5)

    async def story(device) -> None:
        await hear_of(device, sim)
        raise_floor(sim, bundles["one"], counter=2, floor=1)
        await hear_of(device, sim)
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: "refused" in device.phases(), SOON)
        assert "below the floor 5" in device.phases()["refused"]

    attack(story)


# --- acknowledgements and time


async def asks(device, sim) -> str:
    """A nonce of this device that nobody has answered, with a record that waits."""
    sim.faults.mute = True
    device.state.queue([Queued("earlier", 1, b"{}")], limit=1000)
    return device.core.acks.ask()


def test_a_forged_acknowledgement_is_refused(sim, attack) -> None:
    """Attack: the broker makes a device forget what it has measured, with an answer signed by nobody who may."""

    async def story(device) -> None:
        nonce = await asks(device, sim)
        fields = {"nonce": nonce, "boot": "earlier", "stored": 1, "desired_epoch": 1, "desired_seq": 0}
        device.hear(topics.Ack(DEVICE), seal(an_order(Ack, seq=99, **fields), new_signer()))
        await refused(device, "acknowledgement", "not signed by the fleet's current key")
        assert device.state.telemetry()["delivered"] == 0

    attack(story)


def test_a_replayed_acknowledgement_is_refused(sim, attack) -> None:
    """Attack: freeze. Yesterday's answer, signed by the fleet, says that nothing has happened since."""

    async def story(device) -> None:
        await device.until(lambda: not device.core.acks._waiting, SOON)
        old = sim.acks[-1]
        await asks(device, sim)
        device.hear(topics.Ack(DEVICE), old)
        await refused(device, "acknowledgement", "answers nothing that waits: a replay")

    attack(story)


def test_an_answer_that_was_held_back_does_not_tell_the_time(sim, attack) -> None:
    """Attack: an answer is delivered late, so that the device takes the hour before for now."""
    passed = 0.0

    async def story(device) -> None:
        nonlocal passed
        nonce = await asks(device, sim)
        answer = sim.ack(nonce, device.core.boot)
        passed = 3600.0
        device.hear(topics.Ack(DEVICE), answer)
        await refused(device, "acknowledgement", "too late")

    attack(story, monotonic=lambda: asyncio.get_running_loop().time() + passed)


def test_an_answer_to_a_neighbour_is_refused(sim, attack) -> None:
    """Attack: the fleet's answer to another device, which tells of another desired state."""

    async def story(device) -> None:
        nonce = await asks(device, sim)
        device.hear(topics.Ack(DEVICE), sim.ack(nonce, device.core.boot, device=NEIGHBOUR))
        await refused(device, "acknowledgement", "sent to kitchen-1")

    attack(story)


def test_a_stolen_fleet_key_cannot_put_a_device_beyond_every_expiry(sim, attack) -> None:
    """Attack: the fleet key says that it is 2100, so that nothing is ever fresh again."""

    async def story(device) -> None:
        nonce = await asks(device, sim)
        sim.ahead = timedelta(days=27_000)
        device.hear(topics.Ack(DEVICE), sim.ack(nonce, device.core.boot))
        await device.until(lambda: device.clock.now() > datetime.now(UTC) + timedelta(days=1), SOON)
        assert device.clock.now() <= device.keeper.trusted.root.expires + timedelta(minutes=1)

    attack(story)


def test_a_fast_forwarded_time_is_recovered_by_rotating_the_online_keys(sim, attack) -> None:
    """Recovered: a stolen fleet key moved the time to the end of the root's life; new keys void what it said."""

    async def story(device) -> None:
        nonce = await asks(device, sim)
        sim.ahead = timedelta(days=27_000)
        device.hear(topics.Ack(DEVICE), sim.ack(nonce, device.core.boot))
        await device.until(lambda: device.clock.now() > datetime.now(UTC) + timedelta(days=1), SOON)
        sim.ahead = timedelta(0)
        for role in ("timestamp", "snapshot", "fleet"):
            sim.repo.keys[role] = [new_signer()]
        sim.repo.sign_root()
        sim.repo.sign_targets()
        sim.repo.publish()
        device.hear_retained()
        await device.until(lambda: device.clock.now() < datetime.now(UTC) + timedelta(days=1), SOON)
        assert device.state.newest_time() < datetime.now(UTC) + timedelta(days=1)

    attack(story)


def test_a_desired_state_that_is_kept_back_shows(sim, attack) -> None:
    """Attack: freeze. The broker keeps the newest desired state to itself, and lets everything else through."""
    sim.faults.hold_desired = True
    sim.seq = 7

    async def story(device) -> None:
        await device.until(lambda: "1.7 does not come" in device.trust()["why"], SOON)

    attack(story, freeze_after=0.2)


def test_a_fleet_that_is_kept_silent_shows(sim, attack) -> None:
    """Attack: freeze. The line is up, and no answer of the fleet is let through."""

    sim.desire()

    async def story(device) -> None:
        await device.until(lambda: device.state.last_desired() == (1, 1), SOON)
        sim.faults.mute = True
        device.core.acks.ask()
        await device.until(lambda: "does not answer" in device.trust()["why"], SOON)

    attack(story, freeze_after=0.2)


# --- commands


def test_a_forged_wipe_is_refused(sim, attack) -> None:
    """Attack: the broker tells a device to forget everything."""

    async def story(device) -> None:
        device.hear(topics.Command(DEVICE), seal(an_order(Command, action="wipe"), new_signer()))
        await refused(device, "command", "not signed by the fleet's current key")
        assert device.wiped == 0

    attack(story)


def test_a_wipe_for_a_neighbour_is_refused(sim, attack) -> None:
    """Attack: a neighbour was retired; the command is sent to every device."""

    async def story(device) -> None:
        device.hear(topics.Command(DEVICE), sim.command("wipe", device=NEIGHBOUR))
        await refused(device, "command", "sent to kitchen-1")
        assert device.wiped == 0

    attack(story)


def test_a_replayed_command_is_not_done_again(sim, attack) -> None:
    """Attack: a command that was recorded is sent again after a newer one."""
    old = sim.command("wipe")

    async def story(device) -> None:
        device.hear(topics.Command(DEVICE), sim.command("report"))
        await device.until(lambda: device.state.last_command()[0] == (1, 2), SOON)
        device.hear(topics.Command(DEVICE), old)
        await refused(device, "command", "not above 1.2")
        assert device.wiped == 0

    attack(story)


def test_a_command_that_was_held_back_until_it_expired_is_not_done(sim, attack) -> None:
    """Attack: a wipe that was recorded before the device was repaired is let through a month later."""

    async def story(device) -> None:
        at = device.clock.now()
        old = an_order(Command, action="wipe", life=0.05, at=at)
        await device.until(lambda: device.clock.now() > at + timedelta(seconds=0.1))
        device.hear(topics.Command(DEVICE), sim.sign(old))
        await device.until(lambda: sim.replies or device.wiped, SOON)
        assert device.wiped == 0
        assert [reply.outcome for reply in sim.replies] == ["refused"]

    attack(story)


def test_a_command_to_the_device_before_it_was_enrolled_again_is_refused(sim, attack) -> None:
    """Attack: a wipe to a device that was retired is kept, and sent to the one that was enrolled under its name."""
    old = an_order(Command, action="wipe", life=100 * 86_400, at=datetime.now(UTC) - timedelta(days=1))

    async def story(device) -> None:
        device.state.note_enrolment(datetime.now(UTC))
        device.hear(topics.Command(DEVICE), sim.sign(old))
        await refused(device, "command", "older than this device's enrolment")
        assert device.wiped == 0

    attack(story)
