"""The short way to a new version: a delta over the old one, and what happens when it is damaged, gone or a lie."""

from __future__ import annotations

import asyncio
import errno
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import LABELS, TinyBundle, embedding, golden, model, pipeline, tokenizer_json, write_bundle

from agent.install.delta import _cut, _header, choose
from compiler.bundle.chunker import chunk_list
from compiler.delta import CHUNKS, DELTA, make_delta
from compiler.progress import Reporter
from wire.chunks import WHOLE, ChunkList, digest, single
from wire.delta import DeltaHeader, Part, join, split
from wire.errors import Malformed
from wire.orders import DeltaOffer
from wire.pipeline import Labels

ON = "turn the light on"
ROWS = 100_000


def bundle(layout: Path, version: str, table: np.ndarray) -> TinyBundle:
    files = [
        ("model", "model.onnx", model(table)),
        ("tokenizer", "tokenizer.json", tokenizer_json()),
        ("labels", "labels.json", Labels(labels=LABELS).to_bytes()),
        ("pipeline", "pipeline.json", pipeline().to_bytes()),
        ("golden", "golden.json", golden(table).to_bytes()),
    ]
    return write_bundle(layout, files, version=version)


@dataclass(frozen=True)
class Versions:
    """Two versions whose every chunk differs, and what makes the second of the first."""

    one: TinyBundle
    two: TinyBundle
    delta: bytes
    chunks: bytes

    @property
    def offer(self) -> DeltaOffer:
        return DeltaOffer(
            blob=self.two.manifest.file("model").digest,
            base=self.one.manifest.file("model").digest,
            delta=digest(self.delta),
            size=len(self.delta),
            chunks=digest(self.chunks) if self.chunks else None,
            chunks_size=len(self.chunks),
        )


def versions(folder: Path, moved: float) -> Versions:
    """A share of all weights moves by a thousandth."""
    table = embedding("1.0.0", ROWS)
    rng = np.random.default_rng(5)
    after = (table + (rng.random(table.shape) < moved) * 1e-3).astype(np.float32)
    one, two = bundle(folder, "1.0.0", table), bundle(folder, "2.0.0", after)
    paths = [b.blob(b.manifest.file("model").digest) for b in (one, two)]
    make_delta(*paths, folder / f"delta-{moved}", Reporter(io.BytesIO()))
    out = folder / f"delta-{moved}"
    listed = (out / CHUNKS).read_bytes() if (out / CHUNKS).exists() else b""
    return Versions(one, two, (out / DELTA).read_bytes(), listed)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """A delta that travels whole."""
    made = versions(tmp_path_factory.mktemp("small"), 0.02)
    assert len(made.delta) < WHOLE
    return made


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """A delta in chunks."""
    made = versions(tmp_path_factory.mktemp("large"), 0.5)
    assert len(made.delta) > WHOLE
    return made


def offer(sim, made: Versions, *offers: DeltaOffer) -> None:
    listed = digest(made.chunks) if made.chunks else None
    sim.deltas = {digest(made.delta): (made.delta, listed)}
    if listed:
        sim.deltas[listed] = (made.chunks, None)
    sim.offers = offers or (made.offer,)


async def running_one(new_device, sim, made: Versions):
    device = new_device()
    sim.release(made.one)
    sim.desire(made.one)
    device.connect()
    await device.until(lambda: device.active() == [made.one.digest])
    sim.release(made.two)
    return device


async def update(device, sim, made: Versions) -> None:
    sim.desire(made.two, rollout="r2")
    device.hear_retained()
    await device.until(lambda: device.active() == [made.two.digest])
    assert (await device.service.infer("kitchen", (ON,))).digest == made.two.digest


def left_over(device, made: Versions) -> list[str]:
    names = {digest(data).removeprefix("sha256:") for data in (made.delta, made.chunks)}
    return [path.name for path in device.store.folder.iterdir() if path.name.partition(".")[0] in names]


@pytest.mark.parametrize("which", ["small", "large"])
def test_a_device_that_holds_the_old_version_gets_the_new_one_by_a_delta(new_device, sim, which, request) -> None:
    made: Versions = request.getfixturevalue(which)

    async def story() -> None:
        device = await running_one(new_device, sim, made)
        offer(sim, made)
        sim.sent_bytes.clear()
        await update(device, sim, made)
        assert sim.sent_bytes[made.offer.blob] == 0
        assert len(made.delta) <= sim.sent_bytes[digest(made.delta)] <= 1.1 * len(made.delta)
        file = made.two.manifest.file("model")
        assert sim.sent_bytes.total() < file.size / 2
        assert digest(device.store.path(file.digest).read_bytes()) == file.digest
        assert (left_over(device, made), device.events) == ([], [])
        await device.stop()

    asyncio.run(story())


def test_a_damaged_base_costs_the_chunks_that_lie_over_the_damage_and_nobody_is_accused(new_device, sim, small) -> None:
    """Accident: the disk changed a byte of the old version, while it answers."""

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        path = device.store.path(small.offer.base)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert digest(path.read_bytes()) != small.offer.base
        offer(sim, small)
        sim.sent_bytes.clear()
        await update(device, sim, small)
        assert 0 < sim.sent_bytes[small.offer.blob] <= 2 * WHOLE
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_base_that_is_not_here_means_the_whole_file(new_device, sim, small) -> None:
    async def story() -> None:
        device = new_device()
        sim.release(small.two)
        offer(sim, small)
        sim.desire(small.two)
        device.connect()
        await device.until(lambda: device.active() == [small.two.digest])
        assert sim.sent_bytes[digest(small.delta)] == 0
        assert sim.sent_bytes[small.offer.blob] >= small.two.manifest.file("model").size
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_delta_that_is_gone_means_the_whole_file(new_device, sim, small) -> None:
    """Accident: the fleet collected the delta after it offered it, and answers nothing."""

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        device.core.deltas._patience = 0.3
        offer(sim, small)
        gone = digest(small.delta)
        sim.missing.add(gone)
        sim.sent_bytes.clear()
        await update(device, sim, small)
        assert sim.faults.fired["gone"] > 0
        assert sim.sent_bytes[gone] == 0
        assert sim.sent_bytes[small.offer.blob] >= small.two.manifest.file("model").size
        assert (left_over(device, small), device.events) == ([], [])
        await device.stop()

    asyncio.run(story())


def test_a_delta_without_its_key_means_the_whole_file(new_device, sim, small) -> None:
    async def story() -> None:
        device = await running_one(new_device, sim, small)
        offer(sim, small)
        sim.deltas = {}
        await update(device, sim, small)
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def noise(made: Versions) -> bytes:
    return b"noise" * 1000


def of_another(made: Versions) -> bytes:
    """A sound delta that makes another blob."""
    header, start = split(made.delta)
    return join(replace(header, target=digest(b"another"))) + made.delta[start:]


def making_another(made: Versions) -> bytes:
    """A delta that says what was offered, and makes other bytes."""
    header, start = split(made.delta)
    stream = bytearray(zlib.decompress(made.delta[start:]))
    stream[-1] ^= 1
    return join(header) + zlib.compress(bytes(stream))


def too_short(made: Versions) -> bytes:
    header, _ = split(made.delta)
    part = replace(header.parts[0], size=10)
    short = DeltaHeader(
        base=header.base, base_size=header.base_size, target=header.target, target_size=10, parts=(part,)
    )
    return join(short) + zlib.compress(b"\1" + bytes(2))


def too_long(made: Versions) -> bytes:
    """A few kilobytes that unpack to many megabytes."""
    header, _ = split(made.delta)
    long = replace(header, target_size=1 << 26, parts=(Part(size=1 << 26),))
    return join(long) + zlib.compress(bytes(1 << 26))


def over_another_size(made: Versions) -> bytes:
    """A delta that reads beyond its base."""
    header, start = split(made.delta)
    return join(replace(header, base_size=header.base_size + 1)) + made.delta[start:]


@pytest.mark.parametrize("lie", [noise, of_another, making_another, too_short, too_long, over_another_size])
def test_a_delta_that_is_a_lie_is_an_alarm_and_means_the_whole_file(new_device, sim, small, lie) -> None:
    """Attack: the fleet, or who holds its key, offers as a delta what is none."""
    data = lie(small)
    wrong = replace(small.offer, delta=digest(data), size=len(data))

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        sim.deltas = {digest(data): (data, None)}
        sim.offers = (wrong,)
        await update(device, sim, small)
        assert sim.sent_bytes[digest(data)] >= len(data)
        assert [subject for subject, _ in device.events] == [digest(data)]
        assert "delta that was offered" in device.events[0][1]
        assert left_over(device, small) == []
        file = small.two.manifest.file("model")
        assert digest(device.store.path(file.digest).read_bytes()) == file.digest
        await device.stop()

    asyncio.run(story())


def test_a_header_of_another_size_than_the_blob_is_refused(small) -> None:
    """Attack: a delta of kilobytes that unpacks for hours."""
    offered, data = small.offer, too_long(small)
    chunks = chunk_list(small.two.blob(offered.blob).read_bytes())
    with pytest.raises(Malformed, match="it makes 67108864 bytes"):
        _header(io.BytesIO(data), offered, chunks)
    header = _header(io.BytesIO(small.delta), offered, chunks)
    assert header.target_size == chunks.size


def test_no_more_of_a_delta_is_unpacked_than_its_blob_has() -> None:
    unpacked = []

    def blocks():
        for i in range(1000):
            unpacked.append(i)
            yield b"0123456789"

    found = []
    with pytest.raises(Malformed, match="another number of bytes"):
        found.extend(_cut(blocks(), single(digest(b"x"), 20)))
    assert (found, len(unpacked)) == ([b"01234567890123456789"], 3)


class Killed(BaseException):
    """The end of the process."""


def test_a_delta_that_ends_the_process_when_it_is_used_costs_one_start(new_device, sim, small, monkeypatch) -> None:
    """Accident or attack: unpacking it takes all memory, and the kernel kills the agent, at every start."""

    tried = []

    def dies(_self: object, used: DeltaOffer, _chunks: ChunkList) -> None:
        tried.append(used.delta)
        raise Killed

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        offer(sim, small)
        with monkeypatch.context() as patch:
            patch.setattr("agent.install.delta.Deltas._apply", dies)
            sim.desire(small.two, rollout="r2")
            device.hear_retained()
            await device.until(lambda: tried)
        await device.stop()
        sim.sent_bytes.clear()
        again = new_device()
        await again.installer.restore()
        again.connect()
        await again.until(lambda: again.active() == [small.two.digest])
        assert sim.sent_bytes[digest(small.delta)] == 0
        assert sim.sent_bytes[small.offer.blob] >= small.two.manifest.file("model").size
        await again.until(lambda: left_over(again, small) == [])
        await again.stop()

    asyncio.run(story())


def test_a_base_that_the_disk_cut_means_the_whole_file_and_nobody_is_accused(new_device, sim, small) -> None:
    """Accident: the end of the old version is gone, while it answers."""

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        path = device.store.path(small.offer.base)
        path.write_bytes(path.read_bytes()[:-1000])
        offer(sim, small)
        sim.sent_bytes.clear()
        await update(device, sim, small)
        assert sim.sent_bytes[digest(small.delta)] >= len(small.delta)
        assert sim.sent_bytes[small.offer.blob] > 2 * WHOLE
        assert device.events == []
        await device.stop()

    asyncio.run(story())


def test_a_delta_that_the_disk_does_not_let_go_of_fails_no_update(new_device, sim, small, monkeypatch) -> None:
    """Accident: the disk has an error where the delta stands, then and when it is swept."""
    unlink = Path.unlink

    def sick(path: Path, missing_ok: bool = False) -> None:
        if path.name == digest(small.delta).removeprefix("sha256:"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        unlink(path, missing_ok=missing_ok)

    async def story() -> None:
        device = await running_one(new_device, sim, small)
        offer(sim, small)
        monkeypatch.setattr(Path, "unlink", sick)
        await update(device, sim, small)
        assert left_over(device, small) != []
        await device.stop()

    asyncio.run(story())


def test_a_chunk_list_of_another_blob_is_an_alarm_and_means_the_whole_file(new_device, sim, large) -> None:
    other = chunk_list(b"x" * 300_000).to_bytes()
    wrong = replace(large.offer, chunks=digest(other), chunks_size=len(other))

    async def story() -> None:
        device = await running_one(new_device, sim, large)
        offer(sim, large, wrong)
        sim.deltas[digest(other)] = (other, None)
        await update(device, sim, large)
        assert [subject for subject, _ in device.events] == [large.offer.delta]
        await device.stop()

    asyncio.run(story())


def test_a_restart_in_the_middle_of_a_delta_goes_on_with_it(new_device, sim, large) -> None:
    async def story() -> None:
        device = await running_one(new_device, sim, large)
        offer(sim, large)
        sim.sent_bytes.clear()
        name = digest(large.delta)
        sim.faults.lose = 0.5
        sim.desire(large.two, rollout="r2")
        device.hear_retained()
        partial = device.store.path(name).with_suffix(".partial")
        await device.until(lambda: partial.exists() and partial.stat().st_blocks > 0)
        await device.stop()
        assert partial.exists()
        sim.faults.lose = 0.0
        again = new_device()
        await again.installer.restore()
        again.connect()
        await again.until(lambda: again.active() == [large.two.digest])
        assert sim.sent_bytes[large.offer.blob] == 0
        # What came before was kept: half of what was sent then was lost, and nothing of the rest was sent twice.
        assert sim.sent_bytes[name] < 3 * len(large.delta)
        assert (left_over(again, large), again.events) == ([], [])
        await again.stop()

    asyncio.run(story())


def test_offers_that_cannot_be_read_any_more_are_forgotten(new_device, sim, small) -> None:
    async def story() -> None:
        device = await running_one(new_device, sim, small)
        device.state.keep_offers(b'[{"blob": "of another agent"}]')
        await device.stop()
        again = new_device()
        await again.installer.restore()
        again.connect()
        await update(again, sim, small)
        await again.stop()

    asyncio.run(story())


BLOB, BASE, OTHER = (f"sha256:{c * 64}" for c in "abc")


def an_offer(size: int, *, base: str = BASE, blob: str = BLOB, chunks_size: int = 0) -> DeltaOffer:
    listed = digest(b"list") if chunks_size else None
    return DeltaOffer(
        blob=blob, base=base, delta=digest(str(size).encode()), size=size, chunks=listed, chunks_size=chunks_size
    )


@pytest.mark.parametrize(
    ("offers", "lacking", "taken"),
    [
        ((), 1000, None),
        ((an_offer(10),), 1000, 10),
        ((an_offer(10),), 10, None),
        ((an_offer(10),), 0, None),
        ((an_offer(20), an_offer(10)), 1000, 10),
        ((an_offer(10, base=OTHER), an_offer(20)), 1000, 20),
        ((an_offer(10, blob=OTHER),), 1000, None),
        ((an_offer(900, chunks_size=100),), 1000, None),
        ((an_offer(900, chunks_size=99),), 1000, 900),
    ],
)
def test_the_smaller_of_missing_chunks_and_a_delta_over_what_is_here_is_taken(offers, lacking, taken) -> None:
    chosen = choose(offers, BLOB, lacking, {BASE}.__contains__)
    assert (chosen.size if chosen else None) == taken


def test_a_delta_that_was_refused_is_not_taken_again() -> None:
    assert choose((an_offer(10),), BLOB, 1000, {BASE}.__contains__, {an_offer(10).delta}) is None
