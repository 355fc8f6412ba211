"""The service of rollouts over a real database: who is reached, what holds, what comes back, and who may say so."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rollout_world import ALICE, BOB, NOW, OPERATOR, SETTLE, World, anew, names, one_world, run
from sqlmodel import func, select

from fleet.access import Caller
from fleet.errors import Conflict, Forbidden, Malformed
from fleet.rollout.exposure import order
from fleet.rollout.views import plan_view
from fleet.store.rollout_tables import RolloutEvent
from fleet.store.tables import RolloutDevice
from wire.units import show_instant

HOUR = timedelta(hours=1)


fleet = pytest.fixture(scope="module")(one_world)


@pytest.fixture
def world(fleet: World) -> World:
    return anew(fleet)


# --- waves and exposure ---------------------------------------------------------------------------------------------


def test_waves_follow_one_another_and_the_last_one_ends_it(world: World) -> None:
    world.join(*names(10))
    rollout = world.start(waves="20%,50%,100%")
    reached = []
    while world.rollout(rollout).state == "running":
        reached.append(sorted(d for d, s in world.members(rollout).items() if s == "sent"))
        world.report(*reached[-1])
    assert list(map(len, reached)) == [2, 3, 5]
    assert [d for wave in reached for d in wave] != names(10), "the order is that of the hash"
    assert set(world.members(rollout).values()) == {"committed"}
    whats = [what for _, what in world.events(rollout)]
    assert whats == ["created", "wave", "wave", "done"]
    assert world.events(rollout, "d0") == [("fleet", "sent"), ("d0", "committed")]


def test_a_thousand_devices_join_half_way_and_exposure_stays_within_the_wave(world: World) -> None:
    """Accident of others: devices that enrol while a rollout runs get the release at once, whatever the wave."""
    early, late = names(1000, "early-"), names(1000, "late-")
    world.join(*early)
    rollout = world.start(waves="5%,10%,100%")
    waves, seen = (5, 10, 100), []

    def check() -> None:
        row, states = world.rollout(rollout), world.members(rollout)
        eligible = 1000 if not joined else 2000
        assert len(states) <= -(-waves[row.wave] * eligible // 100) <= waves[row.wave] * eligible / 100 + 1
        seen.append((row.wave, len(states)))

    joined = False
    check()
    world.report(*list(world.members(rollout))[:30])
    check()
    world.join(*late)
    joined = True
    world.tick()
    check()
    assert seen[-1] == (0, 100)
    everyone = order(rollout, early + late)
    fallen_in = [d for d in world.members(rollout) if d.startswith("late-")]
    assert 20 < len(fallen_in) <= 50
    assert set(fallen_in) <= set(everyone[:150]), "who joins late stands in the order like everybody else"
    world.report(*[d for d, s in world.members(rollout).items() if s == "sent"])
    check()
    assert seen[-1] == (1, 200)
    world.answer_all(rollout)
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("done", 2000)


def test_devices_leave_come_back_and_change_their_profile(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="50%,100%")
    first, second = list(world.members(rollout))
    world.report(first)
    world.leave(first)
    world.tick()
    assert (world.members(rollout)[first], world.rollout(rollout).eligible) == ("left", 3)
    world.join(first, profile="pi")
    world.tick()
    assert world.rollout(rollout).eligible == 4
    world.report(second)
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"
    assert set(world.members(rollout).values()) == {"committed"}
    assert ("fleet", "left") in world.events(rollout, first)


def test_a_device_that_began_anew_waits_for_its_turn_again(world: World) -> None:
    """Accident: revoked and enrolled again between two looks; nobody saw it leave."""
    world.join("a", "b")
    rollout = world.start(waves="50%,100%")
    (first,) = world.members(rollout)
    world.report(first, phase="fetching")
    world.join(first)
    world.tick()
    assert world.versions()[first] == "1.0.0", "its place in the order is the first, so it is its turn again"
    assert world.members(rollout) == {first: "sent"}


def test_only_what_the_target_means_is_touched(world: World) -> None:
    world.join("a", "b", tags=["kitchen"])
    world.join("c", "d", tags=["kitchen"], group="lab")
    world.join("e", profile="other", tags=["kitchen"])
    world.join("f")
    rollout = world.start(waves="100", target="tag:kitchen and not group:lab")
    world.answer_all(rollout)
    assert world.versions() == {"a": "1.0.0", "b": "1.0.0", "c": "", "d": "", "e": "", "f": ""}
    with pytest.raises(Conflict, match="no enrolled device that is meant by 'tag=garage' has a profile"):
        world.start(target="tag=garage")


def test_a_wave_stands_for_its_soak(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="25%,100%", soak="1 h")
    world.answer_all(rollout)
    assert "stands for 1 h, until 2026-11-23T09:00" in world.reasons(rollout)
    world.now += HOUR - timedelta(seconds=1)
    world.tick()
    assert len(world.members(rollout)) == 1
    world.now += timedelta(seconds=1)
    world.tick()
    assert len(world.members(rollout)) == 4


# --- windows, rate, conditions, deadline ------------------------------------------------------------------------------


def test_nothing_is_reached_outside_the_windows(world: World) -> None:
    world.join("a")
    rollout = world.start(waves="100", windows=["mon 10:00-11:00 UTC"])
    assert world.members(rollout) == {}
    assert "the next one opens at 2026-11-23T10:00" in world.reasons(rollout)
    world.now += 2 * HOUR
    world.tick()
    assert world.members(rollout) == {"a": "sent"}
    world.now += 4 * HOUR
    world.report("a")
    assert world.rollout(rollout).state == "done", "an answer is taken at any hour"


def test_only_so_many_are_reached_within_an_hour(world: World) -> None:
    world.join(*names(7))
    rollout = world.start(waves="100", per_hour=3)
    reached = [len(world.members(rollout))]
    assert "3 devices were reached within an hour" in world.reasons(rollout)
    for _ in range(4):
        world.answer_all(rollout)
        world.now += timedelta(minutes=31)
        world.tick()
        reached.append(len(world.members(rollout)))
    assert reached == [3, 3, 6, 6, 7]


def test_what_was_brought_back_counts_in_the_hour_too(world: World) -> None:
    world.release("1.0.0", "pi", "x86-64")
    world.join(*names(8))
    world.join(*(f"pi-{n}" for n in range(8)), profile="pi")
    rollout = world.start(waves="100", per_hour=8)
    first = world.members(rollout)
    assert len(first) == 8
    world.report(*(d for d in first if d.startswith("pi-")), phase="failed")
    world.report(*(d for d in first if not d.startswith("pi-")))
    assert {s for d, s in world.members(rollout).items() if d.startswith("pi-")} == {"returned"}
    assert len(world.members(rollout)) == 8


def test_conditions_hold_a_device_by_its_name_and_the_others_go_on(world: World) -> None:
    world.join("a", "b", "c")
    for name, power in (("a", "mains"), ("b", "battery")):
        world.says_of_itself(name, power=power)
    rollout = world.start(waves="100", mains=True)
    assert world.members(rollout) == {"a": "sent"}
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "running"
    assert "b runs on its battery" in world.reasons(rollout)
    assert "c does not say how its machine is" in world.reasons(rollout)
    world.says_of_itself("b", power="mains")
    world.says_of_itself("c", power="mains", at=world.now - 2 * HOUR)
    world.tick()
    assert world.members(rollout) == {"a": "committed", "b": "sent"}
    assert "c said how its machine is 2 h ago" in world.reasons(rollout)


def test_after_the_deadline_nobody_new_is_reached_and_it_says_so(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="50%,100%", deadline=show_instant(NOW + HOUR))
    world.now += HOUR
    world.tick()
    row = world.rollout(rollout)
    assert (row.state, row.verdict) == ("overdue", "HOLD")
    assert "overdue: its deadline was 2026-11-23T09:00" in world.reasons(rollout)
    world.answer_all(rollout)
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("overdue", 2)
    world.act("abort", rollout, "too late")
    assert set(world.versions().values()) == {""}


def test_a_rollout_that_had_reached_everybody_by_its_deadline_ends_well(world: World) -> None:
    world.join("a")
    rollout = world.start(waves="100", deadline=show_instant(NOW + HOUR))
    world.now += 2 * HOUR
    world.tick()
    assert world.rollout(rollout).state == "overdue"
    world.report("a")
    assert world.rollout(rollout).state == "done"


# --- what people say -----------------------------------------------------------------------------------------------


def test_another_person_approves_before_anything_moves(world: World) -> None:
    world.join("a", "b")
    rollout = world.start(caller=ALICE, waves="100", approval="start")
    world.tick()
    assert (world.rollout(rollout).state, world.members(rollout)) == ("awaiting", {})
    laptop = Caller("alice:laptop", frozenset({"admin"}), user="alice")
    for own in (ALICE, laptop):
        with pytest.raises(Forbidden, match="nobody approves their own"):
            world.act("approve", rollout, caller=own)
    with pytest.raises(Forbidden, match="a program cannot approve"):
        world.act("approve", rollout, caller=Caller("token:ci", frozenset({"approver"})))
    with pytest.raises(Forbidden, match="not yours"):
        world.act("approve", rollout, caller=Caller("bob", frozenset({"approver"}), frozenset({"x"}), user="bob"))
    world.act("approve", rollout, caller=BOB)
    assert world.act("approve", rollout, caller=BOB) == [], "asked again, as after a lost answer"
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("running", 2)
    assert ("bob", "approved") in world.events(rollout)


def test_each_wave_waits_for_a_person_if_that_is_asked_for(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(caller=ALICE, waves="25%,50%,100%", approval="every-wave")
    for reached in (1, 2, 4):
        assert world.rollout(rollout).state == "awaiting"
        world.act("approve", rollout, caller=BOB)
        assert len(world.members(rollout)) == reached
        world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"


def test_paused_it_reaches_nobody_and_resumed_it_goes_on(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="25%,100%")
    world.act("pause", rollout, "lunch")
    assert world.act("pause", rollout, "lunch") == []
    world.answer_all(rollout)
    world.tick()
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("paused", 1)
    world.act("resume", rollout)
    assert len(world.members(rollout)) == 4


def test_a_failed_device_tries_again_under_another_name(world: World) -> None:
    world.join(*names(3))
    rollout = world.start(waves="100")
    with pytest.raises(Conflict, match="no device has failed"):
        world.act("retry", rollout)
    world.report("d0", phase="failed")
    assert world.members(rollout)["d0"] == "failed"
    assert world.act("retry", rollout) == ["d0"]
    with world.session() as session:
        member = session.get_one(RolloutDevice, (rollout, "d0"))
        assert (member.attempt, member.state) == (2, "sent")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"
    assert [what for _, what in world.events(rollout, "d0")] == ["sent", "failed", "retried", "committed"]


def test_an_answer_to_the_attempt_before_counts_for_nothing(world: World) -> None:
    world.join(*names(2))
    rollout = world.start(waves="100")
    with world.session() as session:
        owed = world.rollouts.owed(session, ["d0"])["d0"]
    world.report("d0", phase="failed")
    world.act("retry", rollout)
    with world.session() as session:
        assert not world.rollouts._keep(session, owed[0][1], "committed", "")
    assert world.members(rollout)["d0"] == "sent"


def test_an_abort_brings_back_everybody_also_who_is_off(world: World) -> None:
    world.join(*names(4))
    run(world, "1.0.0")
    rollout = world.start("2.0.0", waves="75%,100%")
    touched = sorted(world.members(rollout))
    world.report(touched[0])
    world.change(touched[1], online=False)
    assert sorted(world.act("abort", rollout, "wrong labels")) == touched
    assert set(world.versions().values()) == {"1.0.0"}
    assert world.act("abort", rollout, "wrong labels") == []
    with pytest.raises(Conflict, match="nothing to abort"):
        world.act("abort", rollout, "again")


def test_a_rollout_that_is_done_is_rolled_back_to_what_each_device_ran(world: World) -> None:
    world.join("a", "b")
    run(world, "1.0.0")
    world.join("c")
    world.change("b", online=False)
    second = run(world, "2.0.0")
    assert set(world.versions().values()) == {"2.0.0"}
    world.act("roll_back", second, "slow")
    assert world.versions() == {"a": "1.0.0", "b": "1.0.0", "c": ""}
    assert (world.rollout(second).state, world.act("roll_back", second, "slow")) == ("rolled-back", [])
    assert set(world.members(second).values()) == {"returned"}


def test_a_rollback_to_what_is_not_listed_any_more_is_refused_and_changes_nothing(world: World) -> None:
    world.join("a")
    run(world, "1.0.0")
    second = run(world, "2.0.0")
    del world.repository.releases["models/intents/kitchen/1.0.0/x86-64"]
    with pytest.raises(Conflict, match=r"1\.0\.0/x86-64, which a ran before, is not listed any more"):
        world.act("roll_back", second, "slow")
    assert world.versions() == {"a": "2.0.0"}


def test_a_rollback_leaves_what_a_later_rollout_gave(world: World) -> None:
    world.join("a")
    world.join("b", group="lab")
    first = run(world, "1.0.0")
    rollout = world.start("2.0.0", waves="100", group="lab")
    with pytest.raises(Conflict, match="is running"):
        world.act("roll_back", first, "slow")
    world.answer_all(rollout)
    world.act("roll_back", first, "slow")
    assert world.versions() == {"a": "", "b": "2.0.0"}


# --- installs -------------------------------------------------------------------------------------------------------


def test_a_failure_waits_for_the_others_and_then_brings_everybody_back(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="50%,100%")
    bad, good = world.members(rollout)
    world.report(bad, phase="failed", reason="golden set: case 2")
    assert (world.rollout(rollout).state, world.rollout(rollout).verdict) == ("running", "HOLD")
    world.report(good)
    assert world.rollout(rollout).state == "aborted"
    assert world.reasons(rollout) == f"{bad}: failed: golden set: case 2"
    assert set(world.members(rollout).values()) == {"returned"}


def test_a_failure_aborts_without_the_silent_ones_once_they_are_late(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="50%,100%")
    bad, silent = world.members(rollout)
    world.report(bad, phase="refused")
    world.now += SETTLE - timedelta(seconds=1)
    world.tick()
    assert world.rollout(rollout).state == "running"
    assert silent in world.reasons(rollout)
    world.now += timedelta(seconds=1)
    world.tick()
    assert world.rollout(rollout).state == "aborted"


def test_as_many_failures_as_the_gates_allow_do_not_stop_it(world: World) -> None:
    world.join(*names(40))
    rollout = world.start(waves="100", gates={"preset": "install", "installs": "5 %"})
    world.report("d0", "d1", phase="failed")
    world.answer_all(rollout)
    assert world.rollout(rollout).state == "done"
    third = world.start("2.0.0", waves="100", gates={"preset": "install", "installs": "5 %"})
    world.report("d0", "d1", "d2", phase="failed")
    world.answer_all(third)
    assert world.rollout(third).state == "aborted"


# --- plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_shows_who_gets_what_when_and_the_rollout_keeps_to_it(world: World) -> None:
    world.join(*names(7, "x"))
    world.join(*names(3, "p"), profile="pi")
    run(world, "1.0.0")
    world.join("odd", profile="other")
    with world.session() as session:
        before = session.exec(select(func.count()).select_from(RolloutEvent)).one()
        asked = world.request("2.0.0", waves="2,50%,100%", soak="2 h", windows=["mon 10:00-20:00 UTC"], per_hour=2)
        planned = world.rollouts.plan(session, asked, OPERATOR)
        assert not session.new
        assert not session.dirty
        assert session.exec(select(func.count()).select_from(RolloutEvent)).one() == before
    shown = plan_view(planned.id, planned.plan, planned.releases, planned.excluded)
    assert [len(w["devices"]) for w in shown["waves"]] == [2, 3, 5]
    assert [w["begins"][11:16] for w in shown["waves"]] == ["10:00", "12:00", "15:00"]
    assert [w["bytes"] for w in shown["waves"]] == [2000, 3000, 5000]
    assert {d["before"] for w in shown["waves"] for d in w["devices"]} == {"1.0.0"}
    assert shown["excluded"] == [{"device": "odd", "reason": "2.0.0 has no release for its profile, other"}]
    rollout = world.start("2.0.0", waves="2,50%,100%", plan=planned.id)
    for wave in shown["waves"]:
        assert {d for d, s in world.members(rollout).items() if s == "sent"} == {d["device"] for d in wave["devices"]}
        world.report(*[d["device"] for d in wave["devices"]])
    with pytest.raises(Conflict, match="was started already"):
        world.start("2.0.0", waves="100", plan=rollout)


def test_a_plan_id_that_is_none_is_refused(world: World) -> None:
    world.join("a")
    with pytest.raises(Malformed, match="expected the id of a plan"):
        world.start(plan="../../etc")


# --- what is asked twice, and what goes wrong half-way --------------------------------------------------------------


def test_a_request_that_is_repeated_starts_one_rollout(world: World) -> None:
    world.join("a")
    first = world.start(key="k1")
    assert world.start(key="k1") == first
    with pytest.raises(Conflict, match="another rollout"):
        world.start(key="k1", soak="1 h")


def test_a_device_whose_desired_state_would_grow_too_large_fails_and_nothing_else(world: World) -> None:
    world.join(*names(40))

    def fault(device: str) -> None:
        if device == "d7":
            raise Conflict("device d7: give it fewer")

    world.desired.fault = fault
    rollout = world.start(waves="100", gates={"preset": "install", "installs": "5 %"})
    world.answer_all(rollout)
    assert (world.rollout(rollout).state, world.members(rollout)["d7"]) == ("done", "failed")
    assert world.versions()["d7"] == ""


def test_killed_in_the_middle_of_a_look_nothing_of_it_happened_and_it_is_done_again(world: World) -> None:
    """Accident: SIGKILL at each assignment of a look in turn."""
    world.join(*names(6))
    rollout = world.start(waves="50%,100%")
    first = list(world.members(rollout))
    world.report(*first[:-1])
    for survived in range(3):
        left = [survived]

        def fault(_device: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1

        world.desired.fault = fault
        with pytest.raises(KeyboardInterrupt):
            world.report(first[-1])
        world.begin()
        assert (len(world.members(rollout)), world.rollout(rollout).wave) == (3, 0)
    world.desired.fault = lambda _device: None
    world.report(first[-1])
    assert (len(world.members(rollout)), world.rollout(rollout).wave) == (6, 1)


def test_a_release_that_is_withdrawn_reaches_nobody_new(world: World) -> None:
    world.join(*names(4))
    rollout = world.start(waves="50%,100%")
    world.repository.releases.clear()
    world.answer_all(rollout)
    world.tick()
    assert (world.rollout(rollout).state, len(world.members(rollout))) == ("running", 2)
    assert "has a profile whose release was withdrawn" in world.reasons(rollout)
    world.act("abort", rollout, "withdrawn")
    assert set(world.versions().values()) == {""}
