"""Attacks on models on their way and at rest: by the broker, a neighbour, a cache, or the disk."""

from __future__ import annotations

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import Untrusted
from agent.store.blobs import Blobs
from wire import topics
from wire.bundle import BundleManifest
from wire.chunks import ChunkList, ChunkRef, digest
from wire.errors import Malformed
from wire.errors import Untrusted as UntrustedByWire
from wire.secrecy import blob_key, decrypt_chunk, encrypt_chunk, open_keys, seal_keys

SOON = 10.0


def test_a_swapped_blob_is_not_stored(new_device, sim, bundles, monkeypatch) -> None:
    """Attack: blob swap. A neighbour that may read the same model has its key, and encrypts another one with it."""
    model = bundles["one"].manifest.file("model").digest
    answer = sim.answer

    def swap(topic: str, payload: bytes) -> list[tuple[str, bytes]]:
        return [(to, evil(data) if to == topics.Chunk(model, 2).topic else data) for to, data in answer(topic, payload)]

    def evil(data: bytes) -> bytes:
        key = sim.keys(bundles["one"])[model]
        sim.faults.fire("swapped")
        return encrypt_chunk(key, 2, bytes(len(decrypt_chunk(key, 2, data))))

    monkeypatch.setattr(sim, "answer", swap)

    async def story() -> None:
        device = new_device(bad_chunks=3)
        sim.release(bundles["one"])
        sim.desire(bundles["one"])
        device.connect()
        await device.until(lambda: sim.faults.fired.get("swapped"), SOON)
        await device.until(lambda: device.events, SOON)
        assert "chunk 2 came with another digest" in device.events[0][1]
        await device.until(lambda: "refused" in device.phases(), SOON)
        assert not device.store.has(model)
        assert device.active() == []
        await device.stop()

    asyncio.run(story())


def test_chunks_that_are_good_one_by_one_and_make_another_blob_are_refused(tmp_path) -> None:
    """Attack: blob swap by a chunk list that claims to be of a blob and lists the chunks of another."""
    evil = b"evil" * 1000
    claimed = ChunkList(blob=digest(b"good"), size=len(evil), chunks=(ChunkRef(digest=digest(evil), size=len(evil)),))
    store = Blobs(tmp_path / "blobs", 0)
    partial = store.begin(claimed)
    assert partial.put(0, evil)
    with pytest.raises(Untrusted, match="add up to another blob"):
        partial.finish()
    partial.close()
    assert list(store.folder.iterdir()) == []


def test_a_blob_that_the_disk_changed_is_not_served(tmp_path) -> None:
    """Attack: whoever can write to the flash card swaps a file of a model that was verified when it came."""
    store = Blobs(tmp_path / "blobs", 0)
    store.path(digest(b"good")).write_bytes(b"evil")
    assert not store.is_sound(digest(b"good"))
    assert not store.has(digest(b"good"))


def test_two_chunks_of_one_blob_cannot_be_exchanged() -> None:
    """Attack: the broker sends the chunks of a blob under each other's index."""
    key = blob_key(b"s" * 32, digest(b"blob"), None)
    with pytest.raises(UntrustedByWire, match="does not open"):
        decrypt_chunk(key, 1, encrypt_chunk(key, 0, b"chunk"))


def test_the_key_of_one_blob_does_not_open_another() -> None:
    """Attack: a device reads a model that it is not assigned, with the key of one that it is."""
    mine, other = (blob_key(b"s" * 32, digest(name), None) for name in (b"mine", b"other"))
    with pytest.raises(UntrustedByWire, match="does not open"):
        decrypt_chunk(mine, 0, encrypt_chunk(other, 0, b"chunk"))


def test_one_blob_cut_in_two_ways_has_two_keys() -> None:
    """Attack: a nonce that comes twice under one key gives both chunks away: the same index, cut elsewhere."""
    blob = digest(b"blob")
    keys = {blob_key(b"s" * 32, blob, cut) for cut in (None, digest(b"a list"), digest(b"another list"))}
    assert len(keys) == 3


def test_a_key_ring_that_was_sealed_for_another_name_does_not_open() -> None:
    """Attack: a key ring is moved to the desired state of another device with the same sealing key, a clone."""
    private = ec.generate_private_key(ec.SECP256R1())
    sealed = seal_keys({digest(b"x"): b"k" * 32}, private.public_key(), "kitchen-1")
    with pytest.raises(UntrustedByWire, match="not sealed to this device's key"):
        open_keys(sealed, private, "kitchen-2")


@pytest.mark.parametrize("path", ["../../agent.db", "/etc/cron.d/x", ".ssh", "a/b"])
def test_a_file_name_that_leaves_the_bundle_is_malformed(bundles, path: str) -> None:
    """Attack: path traversal, by whoever may sign a release."""
    value = json.loads(bundles["one"].manifest_bytes)
    text = json.dumps(value)
    bent = text.replace('"model.onnx"', json.dumps(path))
    assert bent != text
    with pytest.raises(Malformed, match="plain file name"):
        BundleManifest.from_bytes(bent.encode())
