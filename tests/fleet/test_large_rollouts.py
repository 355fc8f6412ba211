"""A rollout to thousands: the fleet's work must not grow with the square of its devices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlmodel import Session, col, select, update

from fleet.rollout_service import MANY, Rollouts
from fleet.store.database import Database
from fleet.store.tables import Device, RolloutDevice, RolloutRow
from wire.messages import Reported, UpdateReport
from wire.units import show_instant

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64
TARGET = "models/intents/kitchen/1.0.0/x86-64"


class World:
    """A rollout of one wave under way, and a clock that is set."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.now = NOW
        self.database = Database.in_folder(folder)
        # Nothing is sent or brought back here, so nobody asks the repository or signs.
        self.rollouts = Rollouts(cast(Any, None), cast(Any, None), timedelta(minutes=10), lambda: self.now)
        self.names = [f"d{i}" for i in range(devices)]
        with self.database.transaction() as session:
            session.add(_rollout())
            for name in self.names:
                session.add(
                    Device(id=name, profile="x86-64", created="", token_hash="", token_expires="", state="enrolled")
                )
            session.flush()
            for name in self.names:
                session.add(_member(name))

    def tick(self) -> str:
        with self.database.transaction() as session:
            self.rollouts.tick(session)
            return self.state(session)

    def report(self, device: str, phase: str) -> str:
        with self.database.transaction() as session:
            owed = self.rollouts.owed(session, [device]).get(device, ())
            self.rollouts.take_report(session, reported(device, phase), owed)
            return self.state(session)

    def commit_all(self) -> None:
        with self.database.transaction() as session:
            session.exec(update(RolloutDevice).where(col(RolloutDevice.rollout) == "r").values(state="committed"))

    def state(self, session: Session) -> str:
        return session.exec(select(RolloutRow.state)).one()

    def close(self) -> None:
        self.database.close()


def reported(device: str, phase: Any) -> Reported:
    update = UpdateReport(target=TARGET, digest=DIGEST, rollout="r", phase=phase, reason="too slow")
    return Reported(
        device=device,
        boot="b1",
        starts=1,
        seq=1,
        nonce="n1",
        time=show_instant(NOW),
        sealing_key="",
        agent="0",
        profile="x86-64",
        hardware="a test",
        emulated=True,
        desired_epoch=1,
        desired_seq=1,
        updates=(update,),
    )


def _member(name: str) -> RolloutDevice:
    return RolloutDevice(rollout="r", device=name, target=TARGET, digest=DIGEST, wave=0, state="sent", sent_seq=1)


def _rollout() -> RolloutRow:
    return RolloutRow(
        id="r",
        request_key=None,
        group=None,
        family="intents",
        name="kitchen",
        version="1.0.0",
        waves="[100]",
        wave=0,
        state="running",
        verdict="HOLD",
        reasons="[]",
        started=show_instant(NOW),
        wave_started=show_instant(NOW),
    )


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = World(tmp_path, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("world", [5], indirect=True)
def test_a_small_rollout_is_looked_at_at_every_tick(world: World) -> None:
    assert world.tick() == "running"
    world.commit_all()
    assert world.tick() == "done"


@pytest.mark.parametrize("world", [MANY], indirect=True)
def test_a_large_rollout_is_looked_at_less_often_and_not_forgotten(world: World) -> None:
    assert world.tick() == "running"
    world.commit_all()
    assert world.tick() == "running", "a moment ago it was looked at"
    world.now += timedelta(seconds=2)
    assert world.tick() == "done"


@pytest.mark.parametrize("world", [3], indirect=True)
def test_the_last_answer_ends_a_rollout_without_a_tick(world: World) -> None:
    assert [world.report(name, "committed") for name in world.names] == ["running", "running", "done"]


@pytest.mark.parametrize("world", [2], indirect=True)
def test_a_failure_among_those_that_owe_an_answer_is_kept_for_the_verdict(world: World) -> None:
    assert world.report("d0", "failed") == "running"
    with world.database.transaction() as session:
        noted = session.exec(select(RolloutDevice).where(RolloutDevice.device == "d0")).one()
        assert (noted.state, noted.reason) == ("failed", "failed: too slow")
