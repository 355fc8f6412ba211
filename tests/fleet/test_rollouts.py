"""The rollout table by itself: no fleet, no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fleet.rollouts import AbortAsked, Committed, Event, Failed, Rollout, Step, Tick, advance, exposed, members, start
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Malformed

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
LIMIT = timedelta(minutes=10)
DEVICES = ("a", "b", "c", "d", "e")


def run(step: Step, *events: Event, now: datetime = NOW) -> Step:
    for event in events:
        step = advance(step.rollout, event, now, LIMIT)
    return step


def states(rollout: Rollout) -> dict[str, str]:
    return {m.device: m.state for m in rollout.members}


def test_the_first_wave_is_the_share_rounded_up() -> None:
    step = start("r1", DEVICES, (25, 100), NOW)
    assert len(step.send) == 2
    assert sorted(states(step.rollout).values()) == ["sent", "sent", "waiting", "waiting", "waiting"]
    assert step.rollout.verdict == "HOLD"


def test_a_wave_that_committed_sends_the_next_and_the_last_one_ends_it() -> None:
    step = start("r1", DEVICES, (25, 100), NOW)
    first = step.send
    step = run(step, *(Committed(d) for d in first))
    assert (step.rollout.wave, len(step.send)) == (1, 3)
    step = run(step, *(Committed(d) for d in step.send))
    assert (step.rollout.state, step.rollout.verdict) == ("done", "PROCEED")
    assert set(states(step.rollout).values()) == {"committed"}


def test_a_failure_waits_for_the_other_answers_and_then_brings_everything_back() -> None:
    step = start("r1", DEVICES, (40, 100), NOW)
    bad, good = step.send
    step = run(step, Failed(bad, "self-test: a score is 0.9 away"))
    assert (step.rollout.verdict, step.back) == ("HOLD", ())
    assert any("self-test" in r for r in step.rollout.reasons)
    step = run(step, Committed(good))
    assert (step.rollout.state, set(step.back)) == ("aborted", {bad, good})
    assert step.rollout.reasons == (f"{bad}: self-test: a score is 0.9 away",)
    assert next(m for m in step.rollout.members if m.device == bad).reason == "self-test: a score is 0.9 away"


def test_a_failure_aborts_without_the_silent_ones_once_the_wave_is_overdue() -> None:
    step = start("r1", DEVICES, (40, 100), NOW)
    step = run(step, Failed(step.send[0], "no"))
    assert run(step, Tick(), now=NOW + LIMIT - timedelta(seconds=1)).rollout.state == "running"
    ended = run(step, Tick(), now=NOW + LIMIT)
    assert (ended.rollout.state, len(ended.back)) == ("aborted", 2)


def test_a_silent_device_holds_for_ever_and_is_named() -> None:
    step = start("r1", DEVICES, (20, 100), NOW)
    (silent,) = step.send
    step = run(step, Tick(), now=NOW + 100 * LIMIT)
    assert (step.rollout.state, step.rollout.verdict, step.send) == ("running", "HOLD", ())
    assert silent in step.rollout.reasons[0]
    assert "longer than 10 min" in step.rollout.reasons[0]
    assert run(step, Committed(silent)).rollout.wave == 1


def test_a_person_ends_it_and_what_was_not_touched_stays_so() -> None:
    step = start("r1", DEVICES, (20, 100), NOW)
    ended = run(step, AbortAsked("wrong labels"))
    assert ended.back == step.send
    assert sorted(states(ended.rollout).values()) == ["returned", *["waiting"] * 4]
    assert run(ended, Committed(step.send[0]), Tick(), AbortAsked("again")).rollout == ended.rollout


def test_an_answer_of_a_device_that_was_not_sent_the_release_changes_nothing() -> None:
    step = start("r1", DEVICES, (20, 100), NOW)
    other = next(d for d in DEVICES if d not in step.send)
    assert run(step, Committed(other), Failed(other, "x"), Committed("unknown")).rollout == step.rollout


def test_a_wave_without_a_device_of_its_own_is_passed() -> None:
    step = start("r1", ["only"], (10, 50, 100), NOW)
    assert run(step, Committed("only")).rollout.state == "done"


def test_another_rollout_begins_with_other_devices() -> None:
    many = [f"device-{i}" for i in range(40)]
    firsts = {members(f"r{i}", many, (25, 100))[0].device for i in range(10)}
    assert len(firsts) > 3


@pytest.mark.parametrize("waves", [(), (0, 100), (50,), (50, 50, 100), (60, 40, 100), (50, 101)])
def test_waves_that_do_not_rise_to_100_are_refused(waves: tuple[int, ...]) -> None:
    with pytest.raises(Malformed, match="rising percentages"):
        start("r1", DEVICES, waves, NOW)


WAVES = st.sets(st.integers(1, 99), max_size=5).map(lambda s: (*sorted(s), 100))
ANSWERS = st.lists(st.tuples(st.sampled_from(["commit", "fail", "tick", "late", "abort"]), st.integers(0, 30)))


@given(st.integers(1, 30), WAVES, ANSWERS)
def test_no_wave_ever_reaches_more_than_its_share(
    n: int, waves: tuple[int, ...], answers: list[tuple[str, int]]
) -> None:
    devices = [f"d{i}" for i in range(n)]
    step = start("r1", devices, waves, NOW)
    now, sent = NOW, set(step.send)
    for what, i in answers:
        device = devices[i % n]
        events: dict[str, Event] = {"commit": Committed(device), "fail": Failed(device, "x"), "abort": AbortAsked("x")}
        now += LIMIT if what == "late" else timedelta()
        step = advance(step.rollout, events.get(what, Tick()), now, LIMIT)
        assert not sent & set(step.send), "a device was sent the release twice"
        sent |= set(step.send)
        assert len(step.rollout.touched()) == len(sent) <= exposed(waves[step.rollout.wave], n)
        if step.rollout.state == "aborted":
            assert {m.device for m in step.rollout.members if m.state == "returned"} == sent
