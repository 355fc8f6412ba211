"""Agreement and corrected accuracy: estimates that hold the truth as often as they say, and lies that are left out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.agreement import FEWEST, accuracy, agreement
from wire.agreement import Agreement

cells = st.integers(0, 60)


@st.composite
def counts(draw: st.DrawFn, number: int) -> Agreement:
    """What an honest device can count."""
    ra, rd, wa, wd, more_agreed, more_differed, unchecked = (draw(cells) for _ in range(7))
    agreed = ra + wa + more_agreed
    checked = agreed + rd + wd + more_differed
    return Agreement(
        stratum=number, answers=checked + unchecked, checked=checked, agreed=agreed,
        right_agreed=ra, right_differed=rd, wrong_agreed=wa, wrong_differed=wd,
    )  # fmt: skip


@given(st.lists(st.integers(0, 11), unique=True, max_size=4).flatmap(lambda ks: st.tuples(*(counts(k) for k in ks))))
def test_an_estimate_lies_in_its_interval_between_0_and_1(found: tuple[Agreement, ...]) -> None:
    for estimate in (agreement(found), accuracy(found)):
        if estimate is not None:
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    labelled = sum(one.labelled for one in found)
    assert (accuracy(found) is not None) == (labelled >= FEWEST)


def drawn(rng: random.Random, n: int, labelled: int, *, right: float = 0.85, honest: float = 0.9) -> list[Agreement]:
    """A device's answers: unsure ones, which are worse, are one in four; the reference is right in `honest` of them."""
    sums: dict[int, dict[str, int]] = {}
    for i in range(n):
        unsure = rng.random() < 0.25
        y = rng.random() < (right - 0.3 if unsure else right + 0.1)
        f = y if rng.random() < honest else not y
        mine = sums.setdefault(10 if unsure else 9, {"answers": 0, "checked": 0, "agreed": 0})
        mine["answers"] += 1
        # Every unsure answer goes up and is a check by that; of the sure ones one in four is checked.
        if unsure or rng.random() < 0.25:
            mine["checked"] += 1
            mine["agreed"] += f
            if i < labelled:
                name = f"{'right' if y else 'wrong'}_{'agreed' if f else 'differed'}"
                mine[name] = mine.get(name, 0) + 1
    return [Agreement(stratum=k, **found) for k, found in sums.items()]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """500 draws, 95 %: fewer than 93 % would come by chance less than once in thirty times."""
    rng, truth = random.Random(7), 0.85
    hits = [accuracy(drawn(rng, 1200, 600)) for _ in range(500)]
    assert all(e is not None for e in hits)
    share = sum(e.low <= truth <= e.high for e in hits if e is not None) / len(hits)
    assert 0.93 <= share <= 0.99


def test_agreement_is_not_accuracy_and_the_labels_mend_it() -> None:
    rng = random.Random(3)
    found = drawn(rng, 20_000, 4000, honest=0.7)
    plain, mended = agreement(found), accuracy(found)
    assert plain is not None
    assert mended is not None
    assert plain.high < 0.80
    assert mended.low <= 0.85 <= mended.high


def test_a_good_reference_makes_the_interval_narrower_than_the_labels_alone() -> None:
    found = drawn(random.Random(5), 20_000, 1000, honest=0.98)
    with_reference = accuracy(found)
    alone = accuracy(
        [
            Agreement(
                stratum=one.stratum, answers=one.answers, checked=one.labelled,
                agreed=one.right_agreed + one.wrong_agreed, right_agreed=one.right_agreed,
                right_differed=one.right_differed, wrong_agreed=one.wrong_agreed, wrong_differed=one.wrong_differed,
            )
            for one in found
        ]
    )  # fmt: skip
    assert with_reference is not None
    assert alone is not None
    assert with_reference.high - with_reference.low < 0.7 * (alone.high - alone.low)


def test_strata_count_by_their_share_of_all_answers_not_of_the_checks() -> None:
    """Every unsure answer is checked, and one of a hundred sure ones: the mean of the checks would say 0.5."""
    unsure = Agreement(stratum=10, answers=100, checked=100, agreed=0)
    sure = Agreement(stratum=9, answers=9900, checked=100, agreed=100)
    found = agreement([unsure, sure])
    assert found is not None
    assert found.value == pytest.approx(0.99)


def test_a_device_whose_counts_cannot_be_is_left_out() -> None:
    lie = Agreement(stratum=9, answers=1, checked=100, agreed=100)
    assert agreement([lie]) is None
    assert accuracy([]) is None
