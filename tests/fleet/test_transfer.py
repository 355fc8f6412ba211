from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_process import FleetProcess, Publisher, tiny_bundle, until

from fleet.errors import TooMany
from fleet.mqtt.ranges import AT_ONCE, OF_ONE, Ranges
from wire import topics
from wire.bundle import BundleManifest
from wire.chunks import digest
from wire.errors import Untrusted
from wire.orders import Desired
from wire.secrecy import TAG, decrypt_chunk, open_keys


@contextmanager
def rollout(fleet: FleetProcess, manifest: BundleManifest) -> Iterator[None]:
    """The release on its way to every device, and taken back in the end."""
    body = {"family": "intents", "name": manifest.name, "version": manifest.version, "waves": [100], "gates": "install"}
    started = fleet.api("POST", "/api/v1/rollouts", body)
    try:
        yield
    finally:
        fleet.api("POST", f"/api/v1/rollouts/{started['rollout']}/abort", {"reason": "test over"})


def assigned(device: Any) -> Desired:
    """The desired state that brings keys, once the device has said what to seal them to."""
    device.report()
    while not (desired := device.next_desired(seq=2)).keys:
        pass
    device.report(desired_seq=desired.seq)
    return desired


def test_a_chunk_that_two_devices_want_is_published_once_and_both_can_read_it(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    manifest, blobs = tiny_bundle()
    publisher.release(manifest, blobs)
    model, labels = manifest.file("model").digest, manifest.file("labels").digest
    a, b = new_device("a"), new_device("b")
    with rollout(fleet, manifest):
        rings = {}
        for device in (a, b):
            device.connect(topics.every(topics.Chunk))
            rings[device.id] = device.keys(assigned(device))
        for device in (a, b):
            device.want(model, range(5), 5)
        for device in (a, b):
            pieces = [device.next(topics.Chunk) for _ in range(5)]
            assert [topic.index for topic, _ in pieces] == [0, 1, 2, 3, 4]
            key = rings[device.id][model]
            assert digest(b"".join(decrypt_chunk(key, i, data) for i, (_, data) in enumerate(pieces))) == model
        # The labels come after everything that was asked for before them: nothing came twice.
        a.want(labels, range(1), 1)
        assert a.next(topics.Chunk)[0] == topics.Chunk(labels, 0)


def test_the_key_ring_opens_every_blob_of_the_release_and_nothing_else(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    manifest, blobs = tiny_bundle("1.1.0")
    release = publisher.release(manifest, blobs)
    publisher.release(*tiny_bundle("1.2.0"))
    device = new_device("ringed")
    device.connect(topics.every(topics.Chunk))
    with rollout(fleet, manifest):
        ring = device.keys(assigned(device))
        assert set(ring) == {release.digest, *map(digest, blobs)}
        device.want(release.digest, range(1), 1)
        _, data = device.next(topics.Chunk)
        assert decrypt_chunk(ring[release.digest], 0, data) == manifest.to_bytes()


def test_who_listens_on_the_wire_has_noise(fleet: FleetProcess, publisher: Publisher, new_device: Any) -> None:
    """Attack: a neighbour, who may read the shared topic, or the broker keeps every chunk and every desired state."""
    manifest, blobs = tiny_bundle("1.3.0")
    publisher.release(manifest, blobs)
    model, plain = manifest.file("model").digest, blobs[1]
    device, neighbour = new_device("reader"), new_device("neighbour")
    device.connect(topics.every(topics.Chunk))
    neighbour.connect(topics.every(topics.Chunk))
    with rollout(fleet, manifest):
        desired = assigned(device)
        device.want(model, range(5), 5)
        seen = [neighbour.next(topics.Chunk) for _ in range(5)]
        assert sum(len(data) - TAG for _, data in seen) == len(plain)
        for topic, data in seen:
            assert plain[:32] not in data
            assert digest(data) != model
            with pytest.raises(Untrusted, match="does not open"):
                decrypt_chunk(bytes(32), topic.index, data)
        with pytest.raises(Untrusted, match="not sealed to this device's key"):
            open_keys(desired.keys, neighbour.sealing, device.id)
        with pytest.raises(Untrusted, match="not sealed to this device's key"):
            open_keys(desired.keys, device.sealing, neighbour.id)


def test_a_device_is_not_sent_what_it_is_not_assigned(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    """Attack: a device asks for a model that other devices have."""
    mine, my_blobs = tiny_bundle("1.4.0")
    other, other_blobs = tiny_bundle("1.5.0")
    publisher.release(mine, my_blobs)
    publisher.release(other, other_blobs)
    device = new_device("curious")
    device.connect(topics.every(topics.Chunk))
    with rollout(fleet, mine):
        assigned(device)
        device.want(other.file("model").digest, range(5), 5)
        event = until(lambda: device.view()["security"], what="a security event")[-1]
        assert "not assigned to curious" in event["reason"]
        device.want(mine.file("labels").digest, range(1), 1)
        assert device.next(topics.Chunk)[0] == topics.Chunk(mine.file("labels").digest, 0)


def test_a_device_that_did_not_see_its_new_state_yet_may_ask_for_the_old_one_without_an_alarm(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    manifest, blobs = tiny_bundle("1.6.0")
    publisher.release(manifest, blobs)
    device = new_device("behind")
    device.connect(topics.every(topics.Chunk))
    with rollout(fleet, manifest):
        assigned(device)
    device.want(manifest.file("model").digest, range(5), 5)  # sent before the end of the rollout came through
    device.send(device.batch(1))
    device.next_ack()
    assert device.view()["security"] == []


def test_a_blob_that_no_release_lists_is_not_sent(publisher: Publisher, new_device: Any) -> None:
    publisher.release(*tiny_bundle())
    secret = b"uploaded and never released"
    publisher.upload([secret])
    device = new_device("nosy")
    device.connect(topics.every(topics.Chunk))
    device.want(digest(secret), range(1), 1)
    until(lambda: device.view()["security"], what="a security event")
    assert topics.Chunk not in device.until_answer(device.report())


def test_a_device_with_a_new_sealing_key_gets_its_keys_sealed_again(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    manifest, blobs = tiny_bundle("1.7.0")
    publisher.release(manifest, blobs)
    device = new_device("resealed")
    device.connect()
    with rollout(fleet, manifest):
        first = assigned(device)
        ring, before = device.keys(first), device.sealing
        device.sealing = ec.generate_private_key(ec.SECP256R1())
        device.report(desired_seq=first.seq)
        second = device.next_desired(seq=first.seq + 1)
        assert second.models == first.models
        assert device.keys(second) == ring
        with pytest.raises(Untrusted, match="not sealed"):
            open_keys(second.keys, before, device.id)


def test_a_sealing_key_that_is_none_is_refused(new_device: Any) -> None:
    device = new_device("keyless")
    device.connect()
    device.report(sealing_key="AAAA")
    event = until(lambda: device.view()["security"], what="a security event")[-1]
    assert "not a point of P-256" in event["reason"]


def test_one_device_has_few_of_the_places_for_ranges_and_gives_them_back() -> None:
    """Attack: a device opens range after range and reads none to its end, so that nobody else gets a place."""
    chunks: Any = None
    ranges = Ranges(chunks)
    for _ in range(OF_ONE):
        ranges.enter("greedy")
    with pytest.raises(TooMany, match="greedy fetches 2 ranges"):
        ranges.enter("greedy")
    for i in range(AT_ONCE - OF_ONE):
        ranges.enter(f"other-{i}")
    with pytest.raises(TooMany, match="16 ranges"):
        ranges.enter("one-more")
    ranges.leave("greedy")
    ranges.enter("one-more")
    ranges.leave("one-more")
    ranges.enter("greedy")
