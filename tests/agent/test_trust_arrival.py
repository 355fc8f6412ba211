from __future__ import annotations

import asyncio
import itertools

from trust_repository import new_signer

from agent.inbox import GATHER
from agent.trust.keeper import BUFFER_LIMIT
from wire import topics
from wire.metadata import ROLE_LIMIT


def topic_of(name: str) -> topics.TrustRoot | topics.TrustRole:
    return topics.TrustRoot(int(name[5:])) if name.startswith("root/") else topics.TrustRole(name)


def test_documents_are_trusted_in_every_order_of_arrival_even_one_by_one(new_device, sim) -> None:
    """Retained messages come in any order, and a slow line leaves a pause after each of them."""
    sim.repo.keys["timestamp"], before = [new_signer()], sim.repo.keys["root"]
    sim.repo.sign_root(also=before)
    sim.repo.publish()
    offered = {name: data for name, data in sim.repo.offered().items() if name != "root/1"}

    async def story() -> None:
        for order in itertools.permutations(offered):
            device = new_device()
            for name in order:
                device.keeper.take(topic_of(name), offered[name])
                device.keeper.settle()
            assert device.keeper.judge() == {}
            assert device.keeper.trusted.versions().keys() == {
                "root",
                "timestamp",
                "snapshot",
                "targets",
                "release-intents",
            }
            device.state.save_trust({"root": sim.repo.roots[1]})
            await device.stop()

    asyncio.run(story())


def test_a_forged_document_is_a_security_event_after_a_quiet_moment_and_only_once(new_device, sim) -> None:
    """Attack: a timestamp signed by a key that no root names."""

    async def story() -> None:
        device = new_device()
        device.connect()
        await device.until(lambda: "timestamp" in device.keeper.trusted.versions())
        sim.repo.keys["timestamp"] = [new_signer()]
        sim.repo.publish()
        forged = sim.repo.documents["timestamp"]
        for _ in range(2):
            device.inbox.take(topics.TrustRole("timestamp").topic, forged)
            await device.until(lambda: len(device.events) == 1)
        assert device.events[0][0] == "timestamp"
        await asyncio.sleep(2 * GATHER)
        assert len(device.events) == 1
        await device.stop()

    asyncio.run(story())


def test_a_desired_state_by_another_key_is_an_attack_and_changes_nothing(new_device, sim, bundles) -> None:
    """Attack: a desired state signed by somebody else; then a good one, which is acted on."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        fleet, sim.repo.keys["fleet"] = sim.repo.keys["fleet"], [new_signer()]
        sim.desire(bundles["one"])
        sim.repo.keys["fleet"] = fleet
        device.connect()
        await device.until(lambda: device.events != [])
        assert device.events[0][0] == "desired state"
        assert device.installer.updates() == ()
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_replayed_desired_state_or_one_for_another_device_is_refused(new_device, sim, bundles) -> None:
    """Attack: yesterday's desired state, rightly signed, is sent again; then one addressed to another device."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.release(bundles["two"])
        old = sim.desire(bundles["one"])
        sim.desire(bundles["two"])
        device.connect()
        await device.until_phase("committed")
        for forged, said in ((old, "not above"), (sim.desire(bundles["one"], device="other"), "sent to")):
            device.events.clear()
            device.inbox.take(topics.Desired("kitchen-1").topic, forged)
            await device.until(lambda: device.events != [])
            assert said in device.events[0][1]
        assert device.active() == [bundles["two"].digest]
        await device.stop()

    asyncio.run(story())


def test_a_device_that_missed_ten_root_rotations_catches_up_from_what_is_retained(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        for _ in range(10):
            before = sim.repo.keys["root"]
            sim.repo.keys["root"] = [new_signer() for _ in range(3)]
            sim.repo.sign_root(also=before)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        assert device.keeper.trusted.root_version == 11
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_forged_root_is_an_attack_and_holds_up_nothing_for_long(new_device, sim) -> None:
    """Attack: a root signed by strangers lies retained as the next version before the device comes."""

    async def story() -> None:
        device = new_device()
        keys, sim.repo.keys["root"] = sim.repo.keys["root"], [new_signer() for _ in range(3)]
        sim.repo.sign_root()
        sim.repo.keys["root"] = keys
        device.connect()
        await device.until(lambda: device.events != [])
        assert device.events[0][0] == "root/2"
        await device.until(lambda: "release-intents" in device.keeper.trusted.versions())
        assert device.keeper.trusted.root_version == 1
        await device.stop()

    asyncio.run(story())


def test_junk_documents_take_a_bounded_room_and_none_of_the_next_connection(new_device, sim) -> None:
    """Attack: a broker sends hundreds of large documents under names that nobody asked for; then an honest one."""

    async def story() -> None:
        device = new_device()
        junk = bytes(ROLE_LIMIT)
        for i in range(100):
            device.keeper.take(topics.TrustRole(f"junk-{i}"), junk)
            device.keeper.take(topics.TrustRoot(100 + i), junk)
        assert sum(map(len, device.keeper._buffer.values())) <= BUFFER_LIMIT
        device.connect()
        await device.until(lambda: "release-intents" in device.keeper.trusted.versions())
        await device.stop()

    asyncio.run(story())


def test_a_retained_document_that_is_cleared_is_no_attack_and_changes_nothing(new_device, sim, bundles) -> None:
    """The fleet clears what it retained for a device that it revoked: an empty payload, signed by nobody."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        for topic in (topics.Desired("kitchen-1"), topics.TrustRole("timestamp"), topics.FleetState()):
            device.hear(topic, b"")
        device.inbox._judge()
        assert (device.events, device.inbox._waiting, device.outbox.open) == ([], None, True)
        device.hear(topics.Desired("kitchen-1"), b"{}")
        await device.until(lambda: device.inbox._waiting_for is not None)
        device.inbox._judge()
        assert [subject for subject, _ in device.events] == ["desired state"]
        await device.stop()

    asyncio.run(story())
