"""A rollout to thousands: the fleet's work must not grow with the square of its devices."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from rollout_world import World
from sqlmodel import col, update

from fleet.rollout.service import MANY
from fleet.store.tables import RolloutDevice


class Large(World):
    """A rollout of one wave under way, whose ticks come as the fleet's do."""

    def __init__(self, devices: int) -> None:
        super().__init__()
        self.names = [f"d{i}" for i in range(devices)]
        self.join(*self.names)
        self.release("1.0.0")
        self.id = self.start("1.0.0", waves="100")

    def tick_now(self) -> str:
        with self.session() as session:
            self.rollouts.tick(session)
        return str(self.rollout(self.id).state)

    def commit_all(self) -> None:
        with self.session() as session:
            session.exec(update(RolloutDevice).where(col(RolloutDevice.rollout) == self.id).values(state="committed"))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = Large(request.param)
    yield made
    made.database.close()


@pytest.mark.parametrize("world", [5], indirect=True)
def test_a_small_rollout_is_looked_at_at_every_tick(world: Large) -> None:
    assert world.tick_now() == "running"
    world.commit_all()
    assert world.tick_now() == "done"


@pytest.mark.parametrize("world", [MANY], indirect=True)
def test_a_large_rollout_is_looked_at_less_often_and_not_forgotten(world: Large) -> None:
    assert world.tick_now() == "running"
    world.commit_all()
    assert world.tick_now() == "running", "a moment ago it was looked at"
    world.now += timedelta(seconds=2)
    assert world.tick_now() == "done"


@pytest.mark.parametrize("world", [MANY], indirect=True)
def test_a_clock_that_is_put_back_does_not_keep_a_large_rollout_from_being_looked_at(world: Large) -> None:
    """Accident: the machine's clock was years ahead when the rollout was looked at."""
    world.now += timedelta(days=3650)
    assert world.tick_now() == "running"
    world.commit_all()
    world.now -= timedelta(days=3650)
    assert world.tick_now() == "done"


@pytest.mark.parametrize("world", [3], indirect=True)
def test_the_last_answer_ends_a_rollout_without_a_tick(world: Large) -> None:
    states = []
    for name in world.names:
        world.report(name)
        states.append(world.rollout(world.id).state)
    assert states == ["running", "running", "done"]


@pytest.mark.parametrize("world", [2], indirect=True)
def test_a_failure_among_those_that_owe_an_answer_is_kept_for_the_verdict(world: Large) -> None:
    world.report("d0", phase="failed")
    assert world.rollout(world.id).state == "running"
    with world.session() as session:
        noted = cast(RolloutDevice, session.get(RolloutDevice, (world.id, "d0")))
        assert (noted.state, noted.reason) == ("failed", "failed: too slow")
