"""Deltas in the fleet: who is offered one, who may fetch it, and how long it stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fleet_process import FleetProcess, Publisher, tiny_bundle, until
from sqlmodel import Session

from fleet import devices
from fleet.builds.delta import DeltaMaker
from fleet.deltas import LEAST, WAIT, Deltas, Made, Pair, is_worth, lacking, pairs
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.store.tables import DeltaRow, Device, RolloutDevice, RolloutRow
from wire import topics
from wire.bundle import BundleManifest
from wire.chunks import ChunkList, digest
from wire.delta import DeltaHeader, Part, join, split
from wire.errors import Malformed
from wire.messages import Reported, SlotReport, UpdateReport
from wire.orders import DesiredModel
from wire.residual import restore
from wire.secrecy import decrypt_chunk


def roll_out(fleet: FleetProcess, version: str, group: str | None = None) -> str:
    body = {
        "family": "intents",
        "name": "kitchen",
        "version": version,
        "waves": [100],
        "group": group,
        "gates": "install",
    }
    rollout: str = fleet.api("POST", "/api/v1/rollouts", body)["rollout"]
    return rollout


def active(manifest: BundleManifest) -> tuple[SlotReport, ...]:
    data = manifest.to_bytes()
    return (SlotReport(model="kitchen", slot="active", target=manifest.target, digest=digest(data)),)


def commit(device: Any, desired: Any, manifest: BundleManifest) -> None:
    (model,) = desired.models
    update = UpdateReport(target=model.target, digest=model.digest, rollout=model.rollout, phase="committed")
    device.report(update, slots=active(manifest), desired_seq=desired.seq)


def desired_with(device: Any, manifest: BundleManifest) -> Any:
    """The desired state that names this release."""
    seq = 1
    while True:
        desired = device.next_desired(seq=seq)
        if [model.target for model in desired.models] == [manifest.target]:
            return desired
        seq = desired.seq + 1


def test_who_was_given_the_old_version_and_runs_it_is_offered_a_delta_and_nobody_else(
    fleet: FleetProcess, publisher: Publisher, new_device: Any
) -> None:
    """Attack: a device says that it runs a version that it was never given, to learn it from the delta."""
    (one, old), (two, new) = tiny_bundle("1.0.0"), tiny_bundle("2.0.0")
    publisher.release(one, old)
    publisher.release(two, new)
    device, liar = new_device("honest", "here"), new_device("liar", "there")
    for each in (device, liar):
        each.connect(topics.every(topics.Chunk))
        each.answer_to(each.report())
    first = roll_out(fleet, "1.0.0", "here")
    commit(device, desired_with(device, one), one)
    until(lambda: fleet.api("GET", f"/api/v1/rollouts/{first}")["state"] == "done", what="the first rollout")
    liar.answer_to(liar.report(slots=active(one)))
    second = roll_out(fleet, "2.0.0")

    desired, none = desired_with(device, two), desired_with(liar, two)
    (offer,) = desired.offers
    assert (offer.base, offer.blob, none.offers) == (digest(old[1]), digest(new[1]), ())
    device.want(offer.delta, range(1), 1)
    _, data = device.next(topics.Chunk)
    delta = decrypt_chunk(device.keys(desired)[offer.delta], 0, data)
    assert (digest(delta), len(delta)) == (offer.delta, offer.size)
    header, start = split(delta)
    assert b"".join(restore(header, [delta[start:]], lambda at, size: old[1][at : at + size])) == new[1]

    assert offer.delta not in liar.keys(none)
    liar.answer_to(liar.report(slots=active(one), desired_seq=none.seq))
    liar.want(offer.delta, range(1), 1)
    event = until(lambda: liar.view()["security"], what="a security event")[-1]
    assert "not assigned to liar" in event["reason"]

    for each, state in ((device, desired), (liar, none)):
        commit(each, state, two)
    until(lambda: fleet.api("GET", f"/api/v1/rollouts/{second}")["state"] == "done", what="the second rollout")


SHORT = timedelta(hours=2)
TIME = "2026-11-22T08:00:00.000Z"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, 8, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.in_folder(tmp_path)
    yield database
    database.close()


class World:
    """A table of deltas with two versions in a real store, and a device that was given the first."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.blobs, self.clock, self.database = BlobStore(folder / "blobs"), Clock(), database
        (self.one, old), (self.two, new) = tiny_bundle("1.0.0"), tiny_bundle("2.0.0")
        for data in (*old, *new, self.one.to_bytes(), self.two.to_bytes()):
            self.blobs.add(data)
        self.model = self.two.file("model").digest
        self.repository: Any = SimpleNamespace(listed={self.model: None}, releases={self.two.target: None})
        self.deltas = self.start()
        self.device, self.member = self.given_one(), self.to_get_two()
        self.models = [DesiredModel(target=self.two.target, digest=self.member.digest, rollout="r")]
        with database.transaction() as session:
            for row in (self.device, a_rollout(), self.member):
                session.add(row)
                session.flush()
            session.expunge_all()

    def given_one(self) -> Device:
        reported = Reported(
            device="a",
            boot="b",
            starts=1,
            seq=1,
            nonce="n",
            time=TIME,
            sealing_key="",
            agent="0",
            profile="x86-64",
            hardware="h",
            emulated=True,
            desired_epoch=1,
            desired_seq=1,
            slots=active(self.one),
            updates=(),
        )
        said = reported.to_bytes().decode()
        return Device(id="a", profile="x86-64", created=TIME, token_hash="", token_expires=TIME, reported=said)

    def to_get_two(self) -> RolloutDevice:
        before = DesiredModel(target=self.one.target, digest=digest(self.one.to_bytes()))
        return RolloutDevice(
            rollout="r",
            device="a",
            target=self.two.target,
            digest=digest(self.two.to_bytes()),
            wave=0,
            state="sent",
            before=before.to_bytes().decode(),
        )

    def start(self) -> Deltas:
        return Deltas(self.database, self.repository, self.blobs, self.clock, kept=SHORT)

    def made(self) -> Made:
        delta = self.blobs.add(b"a delta")
        return Made(delta, 7, self.blobs.add(b"its list"), 8)

    def pair(self, session: Session) -> Pair:
        pair = self.deltas.next(session)
        assert pair is not None
        return pair


@pytest.fixture
def world(tmp_path: Path, database: Database) -> World:
    return World(tmp_path, database)


def a_rollout() -> RolloutRow:
    return RolloutRow(
        id="r",
        family="intents",
        name="kitchen",
        version="2.0.0",
        waves="[100]",
        wave=0,
        state="running",
        verdict="HOLD",
        reasons="[]",
        started=TIME,
        wave_started=TIME,
    )


def test_a_release_waits_for_its_delta_until_there_is_one(world: World) -> None:
    with world.database.transaction() as session:
        assert not world.deltas.ready(session, world.device, world.member)
        assert world.deltas.offers(session, world.device, world.models) == ()
        pair = world.pair(session)
        assert (pair.base, pair.blob, pair.lacking) == (world.one.file("model").digest, world.model, 300_000)
        made = world.made()
        world.deltas.take(session, pair, made, "")
        assert world.deltas.next(session) is None
        assert world.deltas.ready(session, world.device, world.member)
        (offer,) = world.deltas.offers(session, world.device, world.models)
        assert (offer.delta, offer.size, offer.chunks, offer.chunks_size) == (made.delta, 7, made.chunks, 8)
        assert world.deltas.listed == {made.delta: made.chunks, made.chunks: None}


def test_a_release_that_stands_in_a_slot_of_the_device_waits_for_no_delta(world: World) -> None:
    """It ran there in shadow, so it is to be switched to and not fetched."""
    report = devices.last_report(world.device)
    assert report is not None
    shadow = SlotReport(model="kitchen", slot="candidate", target=world.two.target, digest=world.member.digest)
    with world.database.transaction() as session:
        assert not world.deltas.ready(session, world.device, world.member)
        slots = (*active(world.one), shadow)
        world.device.reported = replace(report, slots=slots).to_bytes().decode()
        assert world.deltas.ready(session, world.device, world.member)
        assert world.deltas.offers(session, world.device, world.models) == ()


def test_a_release_goes_on_without_a_delta_that_failed_or_takes_too_long(world: World) -> None:
    with world.database.transaction() as session:
        assert not world.deltas.ready(session, world.device, world.member)
        world.clock.now += WAIT + timedelta(seconds=1)
        assert world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), None, "no compiler")
        assert world.deltas.ready(session, world.device, world.member)
        assert world.deltas.offers(session, world.device, world.models) == ()


def test_a_delta_that_failed_is_tried_again_at_the_next_start(world: World) -> None:
    with world.database.transaction() as session:
        world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), None, "no compiler")
    again = world.start()
    with world.database.transaction() as session:
        assert not again.ready(session, world.device, world.member)


def test_a_delta_is_listed_again_after_a_restart(world: World) -> None:
    with world.database.transaction() as session:
        world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), made := world.made(), "")
    assert world.start().listed == {made.delta: made.chunks, made.chunks: None}


@pytest.mark.parametrize("why", ["not offered any more", "not listed any more"])
def test_a_delta_that_nobody_needs_is_collected(world: World, why: str) -> None:
    with world.database.transaction() as session:
        world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), made := world.made(), "")
    world.clock.now += timedelta(minutes=2)
    with world.database.transaction() as session:
        assert world.deltas.tick(session) == []
    if why == "not listed any more":
        world.repository.listed = {}
        world.clock.now += timedelta(minutes=2)
    else:
        world.clock.now += SHORT
    with world.database.transaction() as session:
        gone = world.deltas.tick(session)
        assert session.get(DeltaRow, (world.one.file("model").digest, world.model)) is None
    world.deltas.drop(gone)
    assert (world.deltas.listed, world.blobs.has(made.delta), world.blobs.has(made.chunks or "")) == ({}, False, False)


def test_a_delta_that_is_offered_stays(world: World) -> None:
    with world.database.transaction() as session:
        world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), world.made(), "")
    for _ in range(3):
        world.clock.now += SHORT - timedelta(minutes=10)
        with world.database.transaction() as session:
            assert len(world.deltas.offers(session, world.device, world.models)) == 1
        with world.database.transaction() as session:
            assert world.deltas.tick(session) == []


def test_a_device_that_runs_something_else_than_it_was_given_is_offered_nothing(world: World) -> None:
    """Attack: what the fleet gave is what counts, and what the device says must agree."""
    with world.database.transaction() as session:
        world.deltas.ready(session, world.device, world.member)
        world.deltas.take(session, world.pair(session), world.made(), "")
    other = DesiredModel(target=world.one.target, digest=digest(b"another"))
    with world.database.transaction() as session:
        member = session.get_one(RolloutDevice, ("r", "a"))
        for before in ("", other.to_bytes().decode()):
            member.before = before
            assert world.deltas.offers(session, world.device, world.models) == ()


def lists(manifest: BundleManifest, blobs: list[bytes]) -> dict[str, ChunkList]:
    return {manifest.file("model").digest: ChunkList.from_bytes(blobs[3])}


def test_only_files_of_one_role_and_name_that_share_too_few_chunks_make_a_pair() -> None:
    (one, old), (two, new) = tiny_bundle("1.0.0"), tiny_bundle("2.0.0")
    known = lists(one, old) | lists(two, new)
    (pair,) = pairs(one, two, lambda file: known[file.digest])
    assert (pair.base, pair.blob, pair.lacking) == (one.file("model").digest, two.file("model").digest, 300_000)
    assert pairs(one, one, lambda file: known[file.digest]) == ()
    small, few = tiny_bundle("1.0.0", size=1000)
    assert pairs(one, small, lambda file: (known | lists(small, [*few, b""]))[file.digest]) == ()


def test_chunks_that_both_have_are_not_lacking() -> None:
    one = ChunkList.from_bytes(tiny_bundle("1.0.0")[1][3])
    two = ChunkList.from_bytes(tiny_bundle("2.0.0")[1][3])
    half = ChunkList(blob=two.blob, size=one.chunks[0].size + two.chunks[1].size, chunks=(one.chunks[0], two.chunks[1]))
    assert (lacking(one, two), lacking(one, one), lacking(one, half)) == (300_000, 0, 65_536)
    assert LEAST == 131_072


def test_a_delta_is_worth_it_when_it_saves_a_fifth() -> None:
    assert (is_worth(80, 100), is_worth(81, 100)) == (True, False)


@pytest.mark.parametrize("wrong", [{"base_size": 999}, {"target_size": 999, "parts": (Part(size=999),)}])
def test_a_delta_of_other_sizes_than_its_pair_has_is_not_offered(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Attack: who got into the compiler makes a delta that unpacks on every device for hours."""
    blobs: Any = BlobStore(tmp_path / "blobs")
    base, blob = blobs.add(b"base"), blobs.add(b"blob")
    nothing: Any = None
    settings: Any = SimpleNamespace(data=tmp_path, build_user="")
    maker = DeltaMaker(settings, nothing, nothing, blobs, nothing)
    sizes = {"base_size": 4, "target_size": 4, "parts": (Part(size=4),)}
    pair = Pair(base, blob, 300_000)
    (tmp_path / "delta").write_bytes(join(DeltaHeader(base=base, target=blob, **sizes)))
    assert maker._keep(pair, tmp_path).size > 0
    (tmp_path / "delta").write_bytes(join(DeltaHeader(base=base, target=blob, **{**sizes, **wrong})))
    with pytest.raises(Malformed, match="999"):
        maker._keep(pair, tmp_path)
