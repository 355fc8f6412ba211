"""What a device installs at all: nothing below a floor, and nothing whose keys were not sealed to it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from wire import topics
from wire.chunks import digest
from wire.secrecy import encrypt_chunk

ON = "turn the light on"


def raise_floor(sim, bundle, floor: int) -> None:
    """The release role lists this release with a floor for its model."""
    sim.repo.releases[bundle.target] = replace(sim.repo.releases[bundle.target], floor=floor)
    sim.repo.sign_release()


def test_a_release_below_the_floor_is_refused_also_after_the_release_that_named_it_is_gone(
    new_device, sim, bundles
) -> None:
    """Attack: whoever holds the fleet key names an old release with a known hole, which is still listed."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"], counter=1)
        sim.release(bundles["two"], counter=2)
        raise_floor(sim, bundles["two"], 2)
        sim.desire(bundles["two"])
        device.connect()
        await device.until_phase("committed")
        del sim.repo.releases[bundles["two"].target]
        sim.repo.sign_release()
        device.hear_retained()
        await device.until(lambda: device.keeper.trusted.floors() == {})
        await device.stop()

        again = new_device()
        await again.installer.restore()
        sim.desire(bundles["one"], rollout="r2")
        again.connect()
        await again.until_phase("refused")
        assert "counter 1 is below the floor 2" in again.phases()["refused"]
        assert (await again.service.infer("kitchen", (ON,))).digest == bundles["two"].digest
        await again.stop()

    asyncio.run(story())


def test_a_floor_that_rises_during_a_download_stops_the_update(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"], counter=1)
        sim.release(bundles["two"], counter=2)
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        raise_floor(sim, bundles["two"], 2)
        device.hear_retained()
        await device.until(lambda: device.state.floor("intents/kitchen") == 2)
        sim.faults.lose = 0.0
        await device.until_phase("refused")
        assert "below the floor 2" in device.phases()["refused"]
        await device.stop()

    asyncio.run(story())


def test_chunks_on_the_way_are_not_those_of_the_bundle(new_device, sim, bundles) -> None:
    """Attack: whoever listens on the line, or owns the broker, wants the model."""

    async def story() -> None:
        device = new_device()
        seen: list[bytes] = []
        deliver = device.link.deliver

        def listen(topic: str, payload: bytes) -> None:
            if isinstance(topics.parse(topic), topics.Chunk):
                seen.append(payload)
            deliver(topic, payload)

        device.link.deliver = listen
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until_phase("committed")
        whole = b"".join(path.read_bytes() for path in device.store.folder.iterdir())
        assert sum(map(len, seen)) >= len(whole)
        assert not any(chunk[:32] in whole for chunk in seen)
        await device.stop()

    asyncio.run(story())


def test_an_update_waits_for_keys_goes_on_when_they_come_and_blocks_nothing(new_device, sim, bundles) -> None:
    """A brand-new device: the fleet learns its sealing key from its first report."""
    sim.sealing = None

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        sim.faults.mute = True
        device.connect()
        await device.until(lambda: "has not sealed the keys" in device.phases().get("fetching", ""))
        assert not device.installer._one_at_a_time.locked()  # nor does another model's update wait for it
        sim.faults.mute = False
        await device.until_phase("committed")
        assert (device.state.last_desired(), device.phases()) == ((1, 2), {"committed": ""})
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_nothing_is_asked_for_without_its_key(new_device, sim, bundles) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.sealing = ec.generate_private_key(ec.SECP256R1()).public_key()  # of a device that lost its own
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: "sealed" in device.phases().get("fetching", ""))
        assert (sim.wants, device.events) == (0, [])
        await device.stop()

    asyncio.run(story())


@pytest.mark.parametrize("keys", ["same", "none"])
def test_a_newer_desired_state_of_the_same_release_leaves_a_download_under_way(new_device, sim, bundles, keys) -> None:
    """The fleet signs it again when it learns a sealing key, after a rotation, and when its end comes near."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        sim.faults.lose = 1.0
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        under_way = device.installer._tasks["kitchen"]
        sim.sealing = sim.sealing if keys == "same" else None
        sim.desire(bundles["one"])
        device.link.publish = lambda *_args, **_more: None  # no report: the fleet seals no keys again
        device.hear_retained()
        await device.until(lambda: device.state.last_desired() == (1, 2))
        assert device.installer._tasks["kitchen"] is under_way
        assert not under_way.done()
        del device.link.publish
        sim.faults.lose = 0.0
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_restart_goes_on_with_the_keys_that_came_before_it(new_device, sim, bundles) -> None:
    """They are sealed on disk, in the transaction that accepted the desired state, and never open there."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        sim.faults.lose = 1.0
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        folder = device.settings.state
        await device.stop()
        keys = sim.keys(bundles["one"]).values()
        kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert not any(key in kept for key in keys)
        sim.faults.lose = 0.0
        again = new_device()
        await again.installer.restore()
        again.connect()
        await again.until_phase("committed")
        assert again.state.last_desired() == (1, 1)
        await again.stop()

    asyncio.run(story())


def test_chunks_by_another_key_or_beyond_the_end_are_refused_and_take_bounded_memory(new_device, sim, bundles) -> None:
    """Attack: somebody else publishes chunks under the blob's topic, at every index that the topic can hold."""

    async def story() -> None:
        device = new_device(bad_chunks=1000)
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: bool(device.core.fetcher._transfers))
        (blob,) = device.core.fetcher._transfers
        bad = device.core.fetcher._transfers[blob].bad
        for index in range(500):
            device.hear(topics.Chunk(blob, index), encrypt_chunk(bytes(32), index, b"strange"))
        assert len(bad) == 2
        assert {subject for subject, _ in device.events} == {blob}
        sim.faults.lose = 0.0
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_the_keys_of_one_desired_state_are_those_that_the_next_one_names(new_device, sim, bundles) -> None:
    """The fleet's chunk secret was lost and made again: what it encrypts from now on needs the newer keys."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        sim.secret = digest(b"another").encode()
        sim.desire(bundles["one"])
        device.hear_retained()
        await device.until(lambda: device.state.last_desired() == (1, 2))
        sim.faults.lose = 0.0
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_key_ring_that_lacks_one_blob_is_waited_for_with_a_reason_and_holds_up_nobody(
    new_device, sim, bundles, monkeypatch
) -> None:
    """Accident: the manifest is here, and the fleet sealed a ring without the key of one file of its bundle."""
    complete = sim.keys
    model = max(bundles["one"].manifest.files, key=lambda file: file.size).digest
    monkeypatch.setattr(sim, "keys", lambda *of: {b: k for b, k in complete(*of).items() if b != model})

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        monkeypatch.setattr(sim, "keys", complete)
        device.connect()
        await device.until(lambda: device.store.has(bundles["one"].digest))
        await device.until(lambda: "has not sealed the keys" in device.phases().get("fetching", ""))
        assert not device.installer._one_at_a_time.locked()
        assert not device.store.has(model)
        device.hear(topics.Desired("kitchen-1"), sim.desire(bundles["one"]))
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())


def test_a_key_that_is_taken_away_during_a_download_lets_other_updates_go_on(new_device, sim, bundles) -> None:
    """Accident: a newer desired state brings a ring without the key of the blob that is coming."""

    async def story() -> None:
        device = new_device()
        sim.release(bundles["one"])
        sim.faults.lose = 1.0
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("lost", 0) > 0)
        device.core.installer._keys._keys.clear()
        await device.until(lambda: "has not sealed the keys" in device.phases().get("fetching", ""))
        assert not device.installer._one_at_a_time.locked()
        sim.faults.lose = 0.0
        device.hear(topics.Desired("kitchen-1"), sim.desire(bundles["one"]))
        await device.until_phase("committed")
        await device.stop()

    asyncio.run(story())
