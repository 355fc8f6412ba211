"""Two processes of one fleet, one database: never both act, not even when one of them was stopped and comes back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from rollout_world import OPERATOR, World

from fleet.errors import Unavailable
from fleet.lease import holder_of
from fleet.store.database import Database
from fleet.store.rollout_tables import LeaseRow

RUN_OUT = timedelta(seconds=31)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[World, World]]:
    """Two services, each with connections of its own."""
    one = World(Database.in_folder(tmp_path), holder="one")
    other = World(Database.in_folder(tmp_path), holder="other")
    other.repository = one.repository
    other.begin()
    for name in ("1.0.0", "2.0.0"):
        one.release(name)
    one.join("a", "b", "c", "d")
    yield one, other
    one.database.close()
    other.database.close()


def lease(world: World) -> tuple[str, int]:
    with world.session() as session:
        row = session.get_one(LeaseRow, "rollouts")
        return row.holder, row.term


def test_who_does_not_lead_changes_nothing_and_says_so(two: tuple[World, World]) -> None:
    one, other = two
    rollout = one.start(waves="50%,100%")
    other.report(*one.members(rollout))
    assert other.tick() == []
    assert (one.rollout(rollout).wave, len(one.members(rollout))) == (0, 2)
    with pytest.raises(Unavailable, match="another process of this fleet leads"):
        other.act("abort", rollout, "mine")
    one.tick()
    assert len(one.members(rollout)) == 4
    assert lease(one) == ("one", 1)


def test_whoever_was_stopped_for_long_does_not_act_when_it_comes_back(two: tuple[World, World]) -> None:
    """Accident: SIGSTOP, a paused virtual machine: it goes on where it was, and does not know that time has passed."""
    one, other = two
    rollout = one.start(waves="50%,100%")
    other.now = one.now + RUN_OUT  # one stands still from here on, and so does its clock
    other.report(*one.members(rollout))
    assert lease(other) == ("other", 2)
    assert len(other.members(rollout)) == 4
    other.act("abort", rollout, "wrong")
    before = len(one.desired.assigned)
    assert one.tick() == []
    with pytest.raises(Unavailable):
        one.start("2.0.0", waves="100")
    one.report("a", "b", "c", "d")
    assert len(one.desired.assigned) == before
    assert other.rollout(rollout).state == "aborted"
    assert set(other.versions().values()) == {""}


def test_a_lease_that_a_wrong_clock_took_keeps_nobody_out(two: tuple[World, World]) -> None:
    """Accident: the clock of one was years ahead when it took the lease, and its machine is gone."""
    one, other = two
    one.now += timedelta(days=3650)
    rollout = one.start(waves="50%,100%")
    assert lease(one)[0] == "one"
    other.report(*one.members(rollout))
    assert lease(other) == ("other", 2)
    assert len(other.members(rollout)) == 4


def test_whoever_is_stopped_in_the_middle_of_an_act_loses_it(two: tuple[World, World]) -> None:
    """Accident: stopped between its first look at the database and its first change; another took over meanwhile."""
    one, other = two
    rollout = one.start(waves="50%,100%")
    touched = list(one.members(rollout))

    def stop(_device: str) -> None:
        one.desired.fault = lambda _d: None
        other.now = one.now + RUN_OUT
        other.act("abort", rollout, "taken over")

    one.desired.fault = stop
    with pytest.raises(Unavailable, match="locked"), one.session() as session:
        one.rollouts.abort(session, rollout, "mine", OPERATOR)
    assert other.reasons(rollout) == "taken over"
    assert [d for d, _ in other.desired.assigned] == touched
    assert set(other.versions().values()) == {""}
    assert lease(other) == ("other", 2)


def test_a_lease_is_kept_while_it_is_used_and_free_when_it_ran_out(two: tuple[World, World]) -> None:
    one, other = two
    rollout = one.start(waves="50%,100%")
    for _ in range(10):
        one.now += timedelta(seconds=20)
        other.now = one.now
        one.tick()
        other.tick()
    assert lease(one) == ("one", 1)
    other.now += RUN_OUT
    other.tick()
    assert lease(one) == ("other", 2)
    other.act("abort", rollout, "over")


def test_a_fleet_that_starts_again_does_not_wait_for_its_own_lease(two: tuple[World, World]) -> None:
    one, _ = two
    rollout = one.start(waves="100")
    one.begin()
    one.act("abort", rollout, "over")
    assert lease(one) == ("one", 2)


def test_a_copy_of_a_folder_is_another_holder_and_the_same_folder_is_the_same(tmp_path: Path) -> None:
    """Accident: a stand-by starts from a copy of the data folder, on a machine that has the same name."""
    one, copy = tmp_path / "one" / "fleet", tmp_path / "two" / "fleet"
    one.mkdir(parents=True)
    shutil.copytree(one, copy)
    assert holder_of(one) == holder_of(one)
    assert holder_of(one) != holder_of(copy)


def test_another_machine_is_another_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boot").write_text("another boot\n")
    here = holder_of(tmp_path)
    monkeypatch.setattr("fleet.lease._BOOT", tmp_path / "boot")
    assert holder_of(tmp_path) != here
    monkeypatch.setattr("fleet.lease._BOOT", tmp_path / "none")
    assert holder_of(tmp_path) != holder_of(tmp_path)


def test_without_a_rollout_nobody_writes(two: tuple[World, World]) -> None:
    one, _ = two
    one.tick()
    assert lease(one) == ("", 0)
