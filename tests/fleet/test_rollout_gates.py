"""What the gates say to the service of rollouts: what is held, what goes on, and what is brought back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from rollout_world import NOW, World, anew, names, one_world, run

from fleet.gates.values import Behaviour, Comparison
from fleet.rollout.views import view
from fleet.store.tables import RolloutRow

HOUR = timedelta(hours=1)

fleet = pytest.fixture(scope="module")(one_world)


@pytest.fixture
def world(fleet: World) -> World:
    return anew(fleet)


def measured(world: World, **terms: Any) -> str:
    return world.start("2.0.0", gates="measured", **terms)


def test_first_installs_have_nothing_to_be_compared_with_and_say_so(world: World) -> None:
    world.join("a", "b")
    world.evidence = tells()
    rollout = measured(world, waves="50%,100%")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"
    assert "that it installs is all there is to judge by" in world.reasons(rollout)


def test_a_first_install_that_fails_its_requests_comes_back(world: World) -> None:
    world.join(*names(10))
    world.evidence = tells(requests=2000, errors=1900)
    rollout = measured(world, waves="50%,100%", soak="1 h")
    world.answer_all(rollout)
    assert (world.rollout(rollout).state, set(world.versions().values())) == ("aborted", {""})
    assert "first_errors" in world.reasons(rollout)


def test_devices_that_ran_another_version_and_were_idle_hold_the_wave(world: World) -> None:
    world.join(*names(10))
    run(world, "1.0.0")
    world.evidence = tells(requests=2000)
    rollout = measured(world, waves="50%,100%")
    world.answer_all(rollout)
    assert (world.rollout(rollout).verdict, len(world.members(rollout))) == ("HOLD", 5)
    assert "no evidence of before on 5 of 5 devices" in world.reasons(rollout)


def test_what_ran_the_same_release_before_is_held_against_nothing(world: World) -> None:
    world.join("a", "b")
    run(world, "1.0.0")
    world.evidence = tells()
    rollout = world.start("1.0.0", gates="measured", waves="50%,100%")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"


def tells(**after: int) -> Callable[[str, str, datetime], Comparison]:
    """Devices of which nothing is known of before: with no requests since, or so many."""

    def tell(device: str, arm: Any, since: datetime) -> Comparison:
        end = since + timedelta(minutes=1)
        now = Behaviour(digest="", begins=since, ends=end, **after) if after and arm == "candidate" else None
        return Comparison(device=device, profile="x86-64", arm=arm, since=since, before=None, after=now)

    return tell


def test_without_evidence_a_wave_holds_and_with_it_it_goes_on(world: World) -> None:
    world.join(*names(10))
    run(world, "1.0.0")
    rollout = measured(world, waves="20%,100%")
    world.answer_all(rollout)
    for _ in range(5):
        world.now += HOUR
        world.tick()
    assert (world.rollout(rollout).verdict, len(world.members(rollout))) == ("HOLD", 2)
    assert "the gates say HOLD of x86-64" in world.reasons(rollout)
    asked = world.asked[-1]
    assert sorted(asked["candidates"]) == sorted(world.members(rollout))
    assert len(asked["controls"]) == 8
    assert not asked["controls"].keys() & asked["candidates"].keys()
    assert set(asked["controls"].values()) == {NOW}, "the wave began then"
    world.says["x86-64"] = "PROCEED"
    world.now += HOUR
    world.tick()
    assert len(world.members(rollout)) == 10


def test_one_profile_is_aborted_and_the_others_finish(world: World) -> None:
    world.join(*names(10, "x"))
    world.join(*names(10, "p"), profile="pi")
    run(world, "1.0.0")
    world.says = {"x86-64": "PROCEED", "pi": "ABORT"}
    rollout = measured(world, waves="40%,100%")
    world.answer_all(rollout)
    world.now += HOUR
    world.tick()
    world.answer_all(rollout)
    row, versions = world.rollout(rollout), world.versions()
    assert row.state == "done"
    assert {v for d, v in versions.items() if d.startswith("p")} == {"1.0.0"}
    assert {v for d, v in versions.items() if d.startswith("x")} == {"2.0.0"}
    assert {s for d, s in world.members(rollout).items() if d.startswith("p")} == {"returned"}
    assert len([d for d in world.members(rollout) if d.startswith("p")]) < 10, "in the first wave"
    world.join("p-late", profile="pi")
    assert "p-late" not in world.members(rollout)
    with world.session() as session:
        shown = view(session, session.get_one(RolloutRow, rollout))
    states = {p["profile"]: (p["state"], p["verdict"]) for p in shown["profiles"]}
    assert states == {"pi": ("aborted", "ABORT"), "x86-64": ("open", "PROCEED")}
    assert ("fleet", "aborted") in world.events(rollout)


def test_the_gates_are_asked_once_in_a_while_and_at_once_when_a_wave_has_settled(world: World) -> None:
    world.join(*names(10))
    run(world, "1.0.0")
    rollout = measured(world, waves="20%,100%")
    first, second = world.members(rollout)
    world.report(first)
    world.tick()
    begun = len(world.asked)
    for _ in range(20):
        world.now += timedelta(seconds=1)
        world.tick()
    assert len(world.asked) == begun
    world.says["x86-64"] = "PROCEED"
    world.report(second)
    assert len(world.members(rollout)) == 10
    assert len(world.asked) == begun + 1


def test_what_the_gates_said_before_the_wave_settled_lets_nothing_pass(world: World) -> None:
    world.join(*names(10))
    run(world, "1.0.0")
    rollout = measured(world, waves="20%,100%")
    first, second = world.members(rollout)
    world.says["x86-64"] = "PROCEED"
    world.report(first)
    world.tick()
    world.says["x86-64"] = "HOLD"
    world.now += timedelta(seconds=1)
    world.report(second)
    assert (world.rollout(rollout).verdict, len(world.members(rollout))) == ("HOLD", 2)


def test_paused_the_gates_still_bring_a_bad_model_back(world: World) -> None:
    world.join(*names(4))
    run(world, "1.0.0")
    rollout = measured(world, waves="50%,100%")
    world.answer_all(rollout)
    world.act("pause", rollout, "looking")
    world.says["x86-64"] = "ABORT"
    world.now += HOUR
    world.tick()
    assert world.rollout(rollout).state == "aborted"
    assert set(world.versions().values()) == {"1.0.0"}
