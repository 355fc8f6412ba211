"""Drift, the pure part: tails of distributions, bins, the comparison, control of false alarms, bias, words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.drift.bias import judge_bias, mean_of
from fleet.drift.bins import Bins, psi, shares
from fleet.drift.comparing import FLOOR, HEAVIEST, Pair, compare
from fleet.drift.control import LOOKS, signs, step
from fleet.drift.distributions import f_quantile, f_tail, t_tail
from fleet.drift.looks import MOST_KEYS, Look
from fleet.drift.values import Alarm, Key, Member, Score
from fleet.intervals import wilson
from wire.messages import InferenceStats
from wire.sketch import Histogram, Sketch

DIGEST = "sha256:" + "d" * 64
counts = st.dictionaries(st.sampled_from([str(i) for i in range(20)]), st.integers(0, 1000), max_size=20)


@given(st.floats(0.01, 200), st.floats(0.3, 60), st.floats(1, 300))
def test_tails_are_those_of_a_library_that_has_them(x: float, k: float, n: float) -> None:
    assert f_tail(x, k, n) == pytest.approx(scipy.stats.f.sf(x, k, n), rel=1e-8, abs=1e-13)
    assert t_tail(x, n) == pytest.approx(2 * scipy.stats.t.sf(x, n), rel=1e-8, abs=1e-13)
    assert f_tail(f_quantile(0.001, k, n), k, n) == pytest.approx(0.001, rel=1e-6)


@given(st.sampled_from(["labels", "confidence", "lengths", "languages"]), counts, counts)
def test_bins_hold_everything_and_each_thing_once(kind: Any, base: dict[str, int], seen: dict[str, int]) -> None:
    bins = Bins.of(kind, base)
    assert len(set(bins.names)) == len(bins.names)
    assert sum(bins.sort(seen)) == sum(seen.values())
    joined = {key: base.get(key, 0) + seen.get(key, 0) for key in {**base, **seen}}
    assert bins.sort(joined) == [a + b for a, b in zip(bins.sort(base), bins.sort(seen), strict=True)]


@given(st.lists(st.integers(0, 99), min_size=2, max_size=8), st.lists(st.integers(0, 99), min_size=8, max_size=8))
def test_the_index_is_nothing_only_where_nothing_moved(a: list[int], b: list[int]) -> None:
    expected, seen = shares(a), shares(b[: len(a)])
    assert psi(expected, expected) == 0
    assert psi(expected, seen) == pytest.approx(psi(seen, expected))
    assert (psi(expected, seen) > 0) == (expected != seen)


def test_the_index_of_the_textbook() -> None:
    """0.3 to 0.5 of two: (0.2 ln(0.5/0.3) - 0.2 ln(0.5/0.7)) = 0.1695, hardly less with what damps it."""
    assert psi([0.3, 0.7], [0.5, 0.5]) == pytest.approx(0.1695, abs=0.003)


# --- the comparison ---------------------------------------------------------------------------------------------------


def drawn(chance: Any, devices: int, apart: float, n: int, base: Any) -> list[Pair]:
    """Devices of `n` answers each, whose mix lies `apart` around the base; expected is the mean of all such devices."""
    many = np.exp(np.log(base) + chance.normal(0, apart, (4000, len(base)))) if apart else np.array([base])
    mean = (many / many.sum(1, keepdims=True)).mean(0)
    own = np.exp(np.log(base) + chance.normal(0, apart, (devices, len(base))))
    own /= own.sum(1, keepdims=True)
    return [Pair(chance.multinomial(n, p).tolist(), (n * mean).tolist()) for p in own]


def test_a_million_answers_of_ten_devices_that_differ_are_no_proof_and_of_alike_ones_they_are() -> None:
    """The unit is the device: by requests alone every one of these fleets would be an alarm."""
    chance, base, fooled, false = np.random.default_rng(3), np.full(6, 1 / 6), 0, 0
    for _ in range(200):
        pairs = drawn(chance, 10, 1.2, 100_000, base)
        found = compare(pairs, [])
        assert found is not None
        x2 = sum(
            found.n * (q - e) ** 2 / e for e, q in zip(found.expected, found.seen, strict=True)
        )  # what Pearson would say of requests
        fooled += scipy.stats.chi2.sf(x2, 5) < 1e-6
        false += found.p < 0.001
    assert fooled == 200
    assert false <= 2
    shifted = [Pair([60, 10, 10, 10, 10, 0], [50 / 3] * 6) for _ in range(10)]
    found = compare(shifted, [])
    assert found is not None
    assert found.p < 1e-6 < found.limit < found.psi


def test_too_few_answers_or_devices_say_nothing_unless_their_days_do() -> None:
    alike = Pair([30.0, 30.0], [30.0, 30.0])
    assert compare([alike], []) is None
    assert compare([Pair([5.0, 4.0], [4.5, 4.5])] * 5, []) is None
    assert compare([alike], [[30, 29], [31, 30], [30, 30], [29, 30], [30, 31]]) is not None


def test_one_device_that_shouts_does_not_speak_for_the_fleet() -> None:
    """Attack: a device tells of a billion answers."""
    fleet = [Pair([50.0, 50.0], [50.0, 50.0])] * 20
    liar = Pair([1e9, 0.0], [5e8, 5e8])
    found = compare([*fleet, liar], [])
    assert found is not None
    most = HEAVIEST * 100
    assert found.seen[0] == pytest.approx((20 * 50 + most) / (20 * 100 + most))
    assert found.p > 0.01


def test_what_days_differ_by_anyway_is_not_drift() -> None:
    pairs = [Pair([70.0, 30.0], [50.0, 50.0])] * 30
    calm = [[1500 + i, 1500 - i] for i in range(-5, 5)]
    wild = [[1500 + 120 * i, 1500 - 120 * i] for i in range(-5, 5)]
    in_calm, in_wild = compare(pairs, calm), compare(pairs, wild)
    assert in_calm is not None
    assert in_wild is not None
    assert in_calm.p < 1e-9
    assert in_wild.p > 0.01


def test_a_small_move_of_very_many_is_below_the_floor() -> None:
    found = compare([Pair([5200.0, 4800.0], [5000.0, 5000.0])] * 500, [])
    assert found is not None
    assert found.psi < FLOOR == found.limit
    assert found.p == 1


# --- control ----------------------------------------------------------------------------------------------------------


def score(p: float, effect: float = 0.5, stratum: str = "all", subject: Any = "labels", digest: str = DIGEST) -> Score:
    return Score(Key(digest, stratum, subject, "past"), 9, 900.0, effect, 0.1, p, "moved")


def test_among_many_scores_only_what_is_rare_among_so_many_is_a_sign() -> None:
    """Benjamini and Hochberg by hand: 0.0099 alone is under 0.01; as one of a hundred it is not."""
    assert signs([score(0.0099)]) == {score(0).key}
    many = [score((i + 1) / 101, stratum=f"tag:{i}") for i in range(99)]
    assert signs([score(0.0099), *many]) == set()
    assert signs([score(0.0001), *many]) == {score(0).key}
    assert signs([score(1e-9, effect=0.09)]) == set(), "smaller than its limit"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_of_scores_that_are_chance_hardly_one_window_in_a_hundred_has_a_sign(seed: int) -> None:
    draws = np.random.default_rng(seed).random((200, 40))
    found = sum(bool(signs([score(p, stratum=f"tag:{i}") for i, p in enumerate(row)])) for row in draws)
    assert found <= 10  # 2 expected; 11 or more in 1 of 100 000


def states(ps: list[float]) -> list[str | None]:
    """The state after each window of one thing that is looked at."""
    alarms: dict[Key, Alarm] = {}
    found = []
    for i, p in enumerate(ps):
        alarms = step(alarms, [score(p)], f"w{i:02}")
        alarm = alarms.get(score(0).key)
        found.append(alarm.state if alarm else None)
    return found


YES, NO = 1e-6, 0.5


def test_one_sign_is_suspected_two_of_three_open_three_without_recover() -> None:
    assert states([YES, NO, NO, NO]) == ["suspected", "suspected", "suspected", None]
    assert states([YES, YES]) == ["suspected", "open"]
    assert states([YES, NO, YES]) == ["suspected", "suspected", "open"]
    assert states([YES, YES, NO, NO, NO]) == ["suspected", "open", "open", "open", "recovered"]
    assert states([YES, YES, NO, NO, YES, NO]) == ["suspected", *["open"] * 5]
    assert states([YES, YES, NO, NO, NO, YES, YES])[-1] == "open", "an alarm after one that recovered"


@given(st.lists(st.booleans(), max_size=30))
def test_whatever_comes_an_alarm_opens_only_after_two_signs_and_ends_only_after_three_without(seen: list[bool]) -> None:
    open_ = False
    for i, state in enumerate(states([YES if sign else NO for sign in seen])):
        last = seen[max(0, i - LOOKS + 1) : i + 1]
        if state == "open" and not open_:
            assert sum(last) >= 2
        if open_ and state != "open":
            assert state == "recovered"
            assert not any(last)
        open_ = state == "open"


def opened(*scores: Score) -> set[str]:
    """The strata with an open alarm after two windows of the same scores."""
    alarms = step(step({}, scores, "w0"), scores, "w1")
    return {key.stratum for key, alarm in alarms.items() if alarm.state == "open"}


def test_one_change_is_one_alarm_where_it_is_the_clearest() -> None:
    whole, part, other = (score(YES, 0.4, s) for s in ("all", "group:a", "tag:b"))
    assert opened(whole, part, other) == {"all"}
    assert opened(whole, replace(part, effect=0.9), other) == {"group:a"}
    assert opened(score(NO, 0.05), part) == {"group:a"}
    alarms = step(step({}, [whole], "w0"), [whole], "w1")
    for window in ("w2", "w3"):
        alarms = step(alarms, [replace(whole, effect=0.05), part], window)
    assert {key.stratum for key, a in alarms.items() if a.state == "open"} == {"all"}, (
        "one day of the whole was smaller"
    )
    assert opened(whole, score(YES, 0.4, subject="lengths")) == {"all"}


# --- looks, words, bias -----------------------------------------------------------------------------------------------


def test_a_look_comes_back_from_its_text_and_adds_up() -> None:
    stats = InferenceStats(
        model="kitchen",
        digest=DIGEST,
        requests=3,
        errors=0,
        labels={"timer": 2, "light": 1},
        confidence=Histogram.of([0.9, 0.2, 1.0]),
        lengths=Sketch.of([4, 9, 9]).coarse(),
        languages={"en": 3},
        feedback_total=2,
        feedback_correct=1,
    )
    look = Look.of(stats)
    assert Look.parse(look.text()) == look
    both = look.plus(look)
    assert both.labels == {"timer": 4, "light": 2}
    assert (sum(both.confidence.values()), sum(both.lengths.values()), both.feedback) == (6, 6, 4)
    assert both.faded(0.5) == look
    assert not Look.of(InferenceStats(model="kitchen", digest=DIGEST, requests=9, errors=1))


def test_a_device_that_makes_up_labels_does_not_fill_the_table() -> None:
    """Attack: every answer has a label of its own, each as long as can be."""
    plain = InferenceStats(model="m", digest=DIGEST, requests=1, errors=0)
    stats = replace(plain, labels={"x" * 5000 + str(i): 1 for i in range(3000)})
    many = replace(plain, labels={f"l{i}": 1 for i in range(3000)})
    assert len(Look.of(many).labels) == MOST_KEYS
    assert len(Look.of(stats).plus(Look.of(many)).text()) < 20_000


def member(i: int, right: int, of: int, *tags: str, sure: int = 16) -> Member:
    today = Look(confidence={str(sure): of}, feedback=of, correct=right)
    return Member(f"d{i}", frozenset({"group:default", *(f"tag:{t}" for t in tags)}), today)


def test_a_cohort_that_is_answered_worse_is_told_with_both_intervals() -> None:
    members = [member(i, 35 + i % 3, 50, "kids", sure=12) for i in range(12)]
    members += [member(100 + i, 46 + i % 3, 50) for i in range(40)]
    accuracy, sureness = judge_bias(DIGEST, members)
    assert (accuracy.key.stratum, accuracy.key.subject, accuracy.key.against) == ("tag:kids", "accuracy", "rest")
    assert accuracy.effect == pytest.approx(0.22, abs=0.01)
    assert accuracy.p < 1e-6
    assert "accuracy by feedback 72.0 %" in accuracy.words
    assert "the rest 94.0 %" in accuracy.words
    assert sureness.effect == pytest.approx(0.2)


def test_a_cohort_of_few_that_differ_is_no_bias_however_much_they_say() -> None:
    chance, false = np.random.default_rng(5), 0
    for _ in range(200):
        good = np.clip(chance.normal(0.85, 0.1, 46), 0, 1)
        members = [
            member(i, int(chance.binomial(5000, p)), 5000, *(["kids"] if i < 6 else [])) for i, p in enumerate(good)
        ]
        (accuracy, _) = judge_bias(DIGEST, members)
        false += accuracy.p < 0.005 and accuracy.effect >= accuracy.limit
    assert false <= 5  # 1 expected


def test_too_few_devices_of_a_cohort_say_nothing() -> None:
    members = [member(i, 1, 50, *(["kids"] if i < 4 else [])) for i in range(30)]
    assert judge_bias(DIGEST, members) == []


def test_the_interval_of_devices_that_differ_is_wider_than_that_of_their_answers() -> None:
    alike, apart = [member(i, 80, 100) for i in range(10)], [member(i, 60 + 40 * (i % 2), 100) for i in range(10)]
    a, b = mean_of(alike, "accuracy"), mean_of(apart, "accuracy")
    assert a is not None
    assert b is not None
    assert a.value == b.value == 0.8
    assert (a.low, a.high) == pytest.approx(wilson(0.8, 1000), abs=0.002)
    assert b.high - b.low > 3 * (a.high - a.low)
    assert math.isclose(wilson(0.5, 100)[0], 0.4038, abs_tol=1e-4)
