"""Whole rollouts over simulated devices, looked at after every report: a seeded share of `scripts/bench gates`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_gates import INACCURATE, SLOWER, STRICT, upper
from gate_worlds import NULLS, World, roll_out

from fleet.gates.thresholds import Gates, parse


@pytest.mark.parametrize("name", NULLS)
def test_an_equal_model_goes_all_the_way(name: str) -> None:
    for seed in range(2):
        result = roll_out(NULLS[name], Gates(), 9000 + seed)
        assert not result.aborted
        assert {(p.ended, p.wave) for p in result.profiles.values()} == {("done", 2)}
        assert result.looks > 1000


def test_without_tolerance_an_equal_model_is_stopped_no_more_often_than_stated() -> None:
    """Alpha at 20 %, limits of nothing: 8 of 16 would come by chance once in 100 times at a true 20 %."""
    world = replace(NULLS["busy hours"], change=0.0, waves=(10, 50), profiles=("pi",), labels=200, devices=40)
    assert sum(roll_out(world, parse(STRICT), seed).aborted for seed in range(16)) <= 7


def test_a_candidate_slower_on_one_profile_is_stopped_there_in_the_first_wave_and_the_others_finish() -> None:
    result = roll_out(SLOWER, Gates(), 9000)
    slow = result.profiles["pi-3"]
    assert (slow.ended, slow.wave) == ("aborted", 0)
    assert slow.judgement is not None
    assert any(reason.startswith("latency 1.") and "worse" in reason for reason in slow.judgement.reasons)
    assert {p.ended for name, p in result.profiles.items() if name != "pi-3"} == {"done"}


def test_a_candidate_two_points_less_accurate_is_stopped_before_the_second_wave_where_labels_come() -> None:
    world = replace(INACCURATE, profiles=("pi-3",))
    worse = roll_out(world, Gates(), 9000).profiles["pi-3"]
    assert (worse.ended, worse.wave) == ("aborted", 0)
    assert worse.judgement is not None
    print(f"{worse.judgement.numbers['labels']:,.0f} labels: {worse.judgement.reasons[0]}")
    assert worse.judgement.reasons[0].startswith("accuracy +")
    assert worse.judgement.numbers["labels"] < 100_000


def test_the_worlds_would_show_a_gate_that_is_too_eager() -> None:
    """The same equal models, with a fleet that aborts at what is merely suspicious and has no limits: many stop."""
    eager = parse({**STRICT, "alpha": "20 %"})
    eager = replace(eager, profiles=1, alpha=20.0)
    world = World(profiles=("pi",), waves=(10, 50), change=0.0)
    assert any(roll_out(world, eager, seed).aborted for seed in range(6))


def test_the_bound_of_a_share_is_that_of_clopper_and_pearson() -> None:
    """Known values: 0 of 2000, 3 of 100, all of 5."""
    assert upper(0, 2000) == pytest.approx(0.0018427, rel=1e-3)
    assert upper(3, 100) == pytest.approx(0.085176, rel=1e-3)
    assert upper(5, 5) == pytest.approx(1.0)
