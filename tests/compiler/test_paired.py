"""The paired comparison: three outcomes, and an error that is at most what the confidence says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.judge.paired import CHANGED, NEVER, POWER, betting_interval, decide, needed, score_interval

Z = 1.959963984540054  # two-sided 95 %
RIGHT_OR_WRONG = st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1, max_size=80)
SHARES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=80)
EITHER = st.one_of(RIGHT_OR_WRONG, SHARES)
HARD = (
    (100, 0.02, 0.02),
    (100, 0.02, 0.03),
    (30, 0.01, 0.1),
    (250, 0.0, 0.05),
    (500, 0.01, 0.002),
    (1000, 0.005, 0.005),
)
"""Examples, drop and share gained where the score interval without its correction errs most."""


def outcome(lost: int, gained: int, n: int, max_drop: float = 1.0) -> str:
    source = [1.0] * lost + [0.0] * gained + [1.0] * (n - lost - gained)
    variant = [0.0] * lost + [1.0] * gained + [1.0] * (n - lost - gained)
    return decide(source, variant, max_drop, 0.95, "accuracy").outcome


def chances(n: int, lost: float, gained: float) -> Iterator[tuple[int, int, float]]:
    """How likely each count of lost and gained examples is, by the multinomial distribution; the rest is below 1e-9."""
    same = 1 - lost - gained
    for a in range(n + 1):
        for b in range(n + 1 - a):
            logs = math.lgamma(n + 1) - math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(n - a - b + 1)
            logs += _times(a, lost) + _times(b, gained) + _times(n - a - b, same)
            if logs > -25:
                yield a, b, math.exp(logs)
            elif b > n * gained:
                break
        if a > n * lost + 12 * math.sqrt(n * lost + 1) + 12:
            return


def _times(count: int, share: float) -> float:
    return 0.0 if count == 0 else count * math.log(share) if share > 0 else -math.inf


def errors(n: int, drop: float, gained: float, **options: float) -> tuple[float, float]:
    """How likely the interval ends below, and begins above, a drop that is the true one."""
    low = high = 0.0
    for lost, won, chance in chances(n, drop + gained, gained):
        interval = score_interval(lost, won, n, Z, **options)
        high += chance * (interval[1] <= drop)
        low += chance * (interval[0] > drop)
    return high, low


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high"), [(1, 7, 21, -0.517, -0.026), (0, 1, 44, -0.118, 0.059)]
)
def test_without_the_correction_the_interval_is_tangos(lost: int, gained: int, n: int, low: float, high: float) -> None:
    """Published: Fagerland, Lydersen and Laake's airway example, and the lower end of Tango's own of contact lenses."""
    assert score_interval(lost, gained, n, Z, correction=0.0) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("n", "drop", "gained"), HARD)
def test_a_variant_that_is_worse_by_the_limit_passes_at_most_as_often_as_the_confidence_allows(
    n: int, drop: float, gained: float
) -> None:
    """The sum of the exact probabilities, not a sample of them."""
    passes, fails = errors(n, drop, gained)
    assert passes <= 0.025
    assert passes + fails <= 0.05


def test_the_correction_is_needed() -> None:
    assert sum(errors(100, 0.02, 0.02, correction=0.0)) > 0.059


def test_values_in_between_pass_at_most_as_often_as_the_confidence_allows() -> None:
    """The variant loses nine tenths of a few examples and nothing of the others, 2 points in the mean."""
    chooser, runs = random.Random(11), 200
    outcomes = [
        decide([1.0] * 200, [0.1 if chooser.random() < 0.02 / 0.9 else 1.0 for _ in range(200)], 2.0, 0.95, "x").outcome
        for _ in range(runs)
    ]
    # 2.5 % of 200, and three standard deviations of what so few runs can tell.
    assert outcomes.count("pass") <= 5 + 3 * math.sqrt(5)
    assert outcomes.count("pass") + outcomes.count("fail") <= 10 + 3 * math.sqrt(10)


def test_250_examples_cannot_decide_a_drop_of_one_point() -> None:
    """At an accuracy of 0.6, with four answers in a hundred changed and no difference in the mean."""
    source = [1.0] * 150 + [0.0] * 100
    variant = [0.0] * 5 + [1.0] * 145 + [1.0] * 5 + [0.0] * 95
    found = decide(source, variant, 1.0, 0.95, "accuracy")
    assert (found.outcome, found.drop, found.n) == ("inconclusive", 0.0, 250)
    assert found.needed > 3000


def test_the_same_share_of_changes_in_more_examples_decides() -> None:
    assert outcome(63, 63, 3140) == "pass"
    assert outcome(160, 32, 3140) == "fail"
    assert outcome(80, 48, 3140) == "inconclusive"


def test_a_variant_that_changed_nothing_passes_with_examples_enough_and_not_with_a_few() -> None:
    """The accident: an interval of width 0 that lets everything pass which was tried on three examples."""
    n = needed(1.0, 0.95, 0.0)
    assert [outcome(0, 0, count) for count in (3, n - 1, n)] == ["inconclusive", "inconclusive", "pass"]


@pytest.mark.parametrize("like", [0.998, 1.0])
def test_cosines_that_are_all_alike_do_not_decide_after_a_few(like: float) -> None:
    few, many = ([like] * n for n in (100, 1000))
    assert decide([1.0] * 100, few, 1.0, 0.95, "agreement").outcome == "inconclusive"
    assert decide([1.0] * 1000, many, 1.0, 0.95, "agreement").outcome == "pass"


def test_cosines_that_fell_fail() -> None:
    assert decide([1.0] * 500, [0.95] * 500, 1.0, 0.95, "agreement").outcome == "fail"


def test_everything_wrong_fails_and_is_told_in_points() -> None:
    found = decide([1.0] * 100, [0.0] * 100, 10.0, 0.95, "accuracy")
    assert (found.outcome, found.drop, found.high) == ("fail", 100.0, 100.0)


@pytest.mark.parametrize(
    ("source", "variant"), [([], []), ([1.0], [1.0, 0.0]), ([1.0], [math.nan]), ([1.2], [1.0]), ([1.0], [-0.1])]
)
def test_what_is_no_pair_of_lists_of_values_is_refused(source: list[float], variant: list[float]) -> None:
    with pytest.raises(ValueError, match=r"zip|value from 0 to 1"):
        decide(source, variant, 1.0, 0.95, "accuracy")


@settings(max_examples=60, deadline=None)
@given(EITHER, st.floats(0.5, 0.99))
def test_the_interval_holds_the_drop_and_is_never_a_point(pairs: list[tuple[float, float]], confidence: float) -> None:
    found = decide(*zip(*pairs, strict=True), 1.0, confidence, "m")
    assert -100 <= found.low <= found.drop + 1e-9
    assert found.drop - 1e-9 <= found.high <= 100
    assert found.high - found.low > 0


@settings(max_examples=60, deadline=None)
@given(EITHER, st.floats(0.5, 0.99))
def test_source_and_variant_in_each_others_place_turn_the_interval_round(
    pairs: list[tuple[float, float]], confidence: float
) -> None:
    source, variant = zip(*pairs, strict=True)
    there, back = decide(source, variant, 1.0, confidence, "m"), decide(variant, source, 1.0, confidence, "m")
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(EITHER, st.floats(0, 50), st.floats(0, 50))
def test_a_wider_limit_is_never_harder(pairs: list[tuple[float, float]], one: float, other: float) -> None:
    rank = {"fail": 0, "inconclusive": 1, "pass": 2}
    narrow, wide = (decide(*zip(*pairs, strict=True), d, 0.95, "m").outcome for d in sorted((one, other)))
    assert rank[narrow] <= rank[wide]


@settings(max_examples=40, deadline=None)
@given(EITHER)
def test_more_confidence_makes_a_wider_interval(pairs: list[tuple[float, float]]) -> None:
    less, more = (decide(*zip(*pairs, strict=True), 1.0, c, "m") for c in (0.8, 0.99))
    assert more.low <= less.low + 1e-9
    assert less.high <= more.high + 1e-9


@pytest.mark.parametrize(
    "interval", [lambda n: score_interval(0, 0, n, Z), lambda n: betting_interval([0.0] * n, 0.05)]
)
def test_ten_times_the_examples_narrow_it(interval: Callable[[int], tuple[float, float]]) -> None:
    assert interval(1000)[1] < interval(100)[1] / 5


@pytest.mark.parametrize(("max_drop", "changed"), [(1.0, 0.01), (1.0, CHANGED), (2.0, 0.08), (5.0, 0.02)])
def test_with_the_examples_that_are_needed_an_equally_good_variant_passes_as_often_as_planned(
    max_drop: float, changed: float
) -> None:
    """The sum of the exact probabilities again."""
    n = needed(max_drop, 0.95, changed)
    passes = sum(
        chance
        for lost, gained, chance in chances(n, changed / 2, changed / 2)
        if score_interval(lost, gained, n, Z)[1] <= max_drop / 100
    )
    assert passes >= POWER - 0.03


def test_what_is_needed_grows_with_changes_and_confidence_and_falls_with_the_limit() -> None:
    assert needed(1.0, 0.95, CHANGED) == 3358
    assert needed(1.0, 0.95, 0.08) > needed(1.0, 0.95, CHANGED) > needed(2.0, 0.95, CHANGED)
    assert needed(1.0, 0.99, CHANGED) > needed(1.0, 0.95, CHANGED)


def test_no_number_of_examples_shows_a_drop_of_nothing_and_any_shows_one_of_everything() -> None:
    assert (needed(0.0, 0.95, CHANGED), needed(100.0, 0.95, CHANGED)) == (NEVER, 1)
    assert outcome(1, 0, 1, max_drop=100.0) == "pass"
