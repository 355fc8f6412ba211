"""A blob on its way from a real fleet over a real broker to real devices, with everything that can go wrong between."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_process import tiny_bundle, until
from tcp_proxy import TcpProxy
from transfer_fleet import TransferFleet

from agent.identity.identity import Identity
from agent.store.blobs import Blobs
from fleet.mqtt.flow import LARGEST_WINDOW
from fleet.mqtt.ranges import LARGEST
from wire.chunks import WHOLE, ChunkList, ChunkRef, digest
from wire.secrecy import TAG, decrypt_chunk

SIZE = 8 * 1024 * 1024
DEVICES = 4
KILLS = 20


@pytest.fixture(scope="module")
def module_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransferFleet]:
    with TransferFleet(tmp_path_factory.mktemp("transfer"), size=SIZE, devices=DEVICES, transfer_rate="0 B") as fleet:
        yield fleet


@pytest.fixture
def fleet(module_fleet: TransferFleet) -> TransferFleet:
    """The one fleet of this file, its devices empty."""
    module_fleet.empty()
    return module_fleet


def held(partial: Path) -> int:
    """Bytes of a blob that stand on the disk."""
    return partial.stat().st_blocks * 512 if partial.exists() else 0


def settled(fleet: TransferFleet) -> int:
    """Bytes published, once nothing more goes out to a device that is dead."""
    seen = deque([-1], maxlen=10)

    def still() -> bool:
        seen.append(fleet.sent()[0])
        return len(seen) == seen.maxlen and len(set(seen)) == 1

    until(still, what="the end of what is published")
    return seen[-1]


def spent(fleet: TransferFleet, before: tuple[int, int]) -> tuple[float, float]:
    """How many times the blob was published, and answered over HTTPS, since."""
    published, ranges = fleet.sent()
    return (published - before[0]) / fleet.chunks.size, (ranges - before[1]) / fleet.chunks.size


def holds_it(fleet: TransferFleet, device: int = 0) -> bool:
    return Blobs(fleet.store(f"device-{device}"), 0).is_sound(fleet.chunks.blob)


# --- over the line ------------------------------------------------------------------------------------------------


def test_every_chunk_is_published_once_for_all_who_are_there(fleet: TransferFleet) -> None:
    before = fleet.sent()
    with fleet.agents(range(DEVICES)) as agents:
        agents.go()
        agents.all_done()
        memory = agents.next("memory")["extra"]
    assert all(holds_it(fleet, device) for device in range(DEVICES))
    published, ranges = spent(fleet, before)
    assert published <= 1.1
    assert ranges == 0
    assert memory <= DEVICES * 16_000_000


def test_one_device_needs_no_more_than_16_mb_for_a_transfer(fleet: TransferFleet) -> None:
    with fleet.agents([0]) as agents:
        agents.go()
        agents.all_done()
        assert agents.next("memory")["extra"] <= 16_000_000


def test_late_joiners_and_lost_chunks_cost_what_is_missing_once(fleet: TransferFleet) -> None:
    before = fleet.sent()
    with fleet.agents(range(3), drop=0.05) as early, fleet.agents([3], drop=0.05) as late:
        early.go()
        until(lambda: sum(spent(fleet, before)) >= 0.4, what="nearly half of the transfer")
        late.go()
        done = early.all_done() + late.all_done()
    assert sum(d["dropped"] for d in done) > 0
    assert sum(spent(fleet, before)) <= 2.6


def test_a_fifth_of_all_chunks_may_be_lost_where_only_the_line_is_open(fleet: TransferFleet) -> None:
    with fleet.agents([0, 1], drop=0.2, https=False) as agents:
        agents.go()
        done = agents.all_done()
    assert all(d["dropped"] > len(fleet.chunks.chunks) // 20 for d in done)
    assert holds_it(fleet, 0)
    assert holds_it(fleet, 1)


def test_a_line_that_is_cut_in_the_middle_loses_nothing_that_came(fleet: TransferFleet) -> None:
    host, port = fleet.process.broker.split(":")
    with (
        TcpProxy(host, int(port), delay=0.1) as proxy,
        fleet.agents([0], broker=proxy.address, https=False) as agents,
    ):
        agents.go()
        partial = Blobs(fleet.store("device-0"), 0).path(fleet.chunks.blob).with_suffix(".partial")
        until(lambda: held(partial) > SIZE // 8, what="an eighth of the blob")
        proxy.cut()
        assert not holds_it(fleet)
        through = proxy.connections
        proxy.mend()
        (done,) = agents.all_done()
        assert proxy.connections > through
    assert holds_it(fleet)
    assert done["received"] * 0.9 <= len(fleet.chunks.chunks) + LARGEST_WINDOW // 65536


def test_a_new_version_brings_only_the_chunks_that_are_new(fleet: TransferFleet) -> None:
    with fleet.agents([0]) as agents:
        agents.go()
        agents.all_done()
    store, first = Blobs(fleet.store("device-0"), 0), fleet.chunks
    store.path(digest(fleet.chunk_list)).write_bytes(fleet.chunk_list)
    try:
        old = store.read(first.blob)
        cut = first.offsets[-3]
        publish_version(fleet, old[:cut] + bytes(reversed(old[cut:])), "2.0.0")
        assert store.lacking(fleet.chunks) == sum(ref.size for ref in fleet.chunks.chunks[-3:])
        with fleet.agents([0]) as agents:
            agents.go()
            (done,) = agents.all_done()
        assert done["held"] == len(first.chunks) - 3
        assert done["received"] == 3
        assert holds_it(fleet)
    finally:
        fleet.release("3.0.0")


def publish_version(fleet: TransferFleet, model: bytes, version: str) -> None:
    """The same cuts as before, other bytes."""
    at = 0
    refs = []
    for ref in fleet.chunks.chunks:
        refs.append(ChunkRef(digest=digest(model[at : at + ref.size]), size=ref.size))
        at += ref.size
    fleet.release_blob(version, model, ChunkList(blob=digest(model), size=len(model), chunks=tuple(refs)))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_kills_in_one_transfer_waste_a_window_each_at_most(tmp_path: Path) -> None:
    """Accident: SIGKILL, again and again. What was verified stays; only what was on the line comes twice."""
    size = 100 * 1024 * 1024
    with TransferFleet(tmp_path, size=size, devices=1, transfer_rate="16 MiB") as fleet:
        partial = Blobs(fleet.store("device-0"), 0).path(fleet.chunks.blob).with_suffix(".partial")
        costs = []
        for kill in range(KILLS):
            before = settled(fleet) - held(partial)
            with fleet.agents([0], https=False) as agents:
                agents.go()
                reached = size * (kill + 1) // (KILLS + 2)
                until(
                    lambda reached=reached: held(partial) >= reached,
                    what=f"{reached} bytes",
                    within=60,
                )
                assert not holds_it(fleet)
            costs.append(settled(fleet) - held(partial) - before)
        with fleet.agents([0], https=False) as agents:
            agents.go()
            (done,) = agents.all_done()
        assert holds_it(fleet)
        assert done["held"] >= len(fleet.chunks.chunks) * 3 // 4
        assert len(costs) == KILLS
        assert max(costs) <= LARGEST_WINDOW + WHOLE
        assert fleet.sent()[0] - size <= KILLS * LARGEST_WINDOW


# --- over HTTPS ---------------------------------------------------------------------------------------------------


def test_a_broker_that_drops_every_chunk_does_not_keep_a_device_from_its_blob(fleet: TransferFleet) -> None:
    before = fleet.sent()
    with fleet.agents([0], drop=1.0, timeout=0.2) as agents:
        agents.go()
        (done,) = agents.all_done()
    assert done["received"] == 0
    assert holds_it(fleet)
    assert 1.0 <= spent(fleet, before)[1] <= 1.1


def test_a_fleet_whose_https_is_out_of_reach_still_brings_everything_over_the_line(fleet: TransferFleet) -> None:
    with fleet.agents([0], drop=0.2, timeout=0.2, fleet="https://localhost:1") as agents:
        agents.go()
        agents.all_done()
    assert holds_it(fleet)


def ask(
    fleet: TransferFleet, header: str | None, *, device: str | None = "device-0", blob: str = ""
) -> tuple[int, bytes]:
    """One request for chunks, with the certificate of a device."""
    tls = Identity.load(fleet.state(device)).tls() if device else fleet.process.tls()
    headers = {"Range": header} if header else {}
    return fleet.process.request("GET", f"/api/v1/blobs/{blob or fleet.chunks.blob}/chunks", headers=headers, tls=tls)


def test_a_range_has_the_very_bytes_that_travel_over_the_line(fleet: TransferFleet) -> None:
    sizes = [ref.size + TAG for ref in fleet.chunks.chunks]
    status, data = ask(fleet, f"bytes=0-{sum(sizes[:3]) - 1}")
    assert status == 206
    at = 0
    for index, size in enumerate(sizes[:3]):
        plain = decrypt_chunk(fleet.key, index, data[at : at + size])
        assert digest(plain) == fleet.chunks.chunks[index].digest
        at += size
    assert ask(fleet, f"bytes={sizes[0] - 5}-{sizes[0] + 5}") == (206, data[sizes[0] - 5 : sizes[0] + 6])


@pytest.mark.parametrize(
    "header", [None, "", "bytes=0-", "bytes=-5", "bytes=5-1", "bytes=0-1,4-5", "items=0-1", "bytes=0-99999999999"]
)
def test_a_range_that_is_none_or_beyond_the_blob_is_refused(fleet: TransferFleet, header: str | None) -> None:
    assert ask(fleet, header)[0] == 400


def test_a_range_over_the_limit_is_refused(fleet: TransferFleet) -> None:
    assert ask(fleet, f"bytes=0-{LARGEST}")[0] == 400


def test_chunks_are_only_for_devices_that_the_blob_is_assigned_to(fleet: TransferFleet) -> None:
    """Attack: a device asks for another's model, somebody without a certificate for any, an operator for bytes."""
    other, blobs = tiny_bundle("9.0.0")
    fleet.publisher.release(other, blobs)
    status, body = ask(fleet, "bytes=0-9", blob=other.file("model").digest)
    assert status == 403
    assert "not assigned to device-0" in json.loads(body)["error"]["message"]
    assert ask(fleet, "bytes=0-9", blob="sha256:" + "0" * 64)[0] == 403
    assert ask(fleet, "bytes=0-9", device=None)[0] == 401
    path = f"/api/v1/blobs/{fleet.chunks.blob}/chunks"
    token = {"Authorization": f"Bearer {fleet.process.token}", "Range": "bytes=0-9"}
    assert fleet.process.request("GET", path, headers=token)[0] == 401


def test_a_revoked_device_gets_no_chunks(fleet: TransferFleet) -> None:
    assert ask(fleet, "bytes=0-9", device="device-3")[0] == 206
    fleet.process.api("POST", "/api/v1/devices/device-3/revoke", {"reason": "stolen"})
    status, body = ask(fleet, "bytes=0-9", device="device-3")
    assert status in (401, 403)
    assert b"bytes=" not in body
