"""Four figures of how good a model is: each with its interval, and none in another's place."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from gate_devices import NOW, SINCE, behaviour
from hypothesis import given
from hypothesis import strategies as st

from fleet.gates.estimates import figures
from fleet.gates.values import Behaviour
from wire.agreement import Agreement

CLOUD = [
    Agreement(
        stratum=9, answers=9000, checked=900, agreed=800,
        right_agreed=70, right_differed=6, wrong_agreed=2, wrong_differed=4,
    )
]  # fmt: skip


def devices(*counts: tuple[int, int, int, int]) -> list[Behaviour]:
    """Each: labels, right ones, compared, agreed."""
    plain = behaviour(0, SINCE, NOW)
    return [
        replace(plain, feedback_total=total, feedback_correct=right, compared=compared, agreed=agreed)
        for total, right, compared, agreed in counts
    ]


def test_every_kind_stands_for_itself() -> None:
    found = figures(devices(*[(100, 90 + i % 3, 200, 150 + i) for i in range(10)]), CLOUD)
    assert list(found) == ["feedback accuracy", "shadow agreement", "cloud agreement", "corrected accuracy"]
    values = [one.value for one in found.values()]
    assert values == pytest.approx([0.909, 0.7725, 800 / 900, found["corrected accuracy"].value])
    for one in found.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
        assert one.kind in one.words()
        json.dumps(one.to_value())
    assert found["feedback accuracy"].words().endswith("of 1,000 answers on 10 devices")
    assert found["corrected accuracy"].labelled == 82


def test_what_one_kind_knows_changes_no_other() -> None:
    alone = figures(devices((100, 90, 0, 0)))
    assert list(alone) == ["feedback accuracy"]
    assert list(figures([], CLOUD)) == ["cloud agreement", "corrected accuracy"]
    both = figures(devices((100, 90, 200, 20)), CLOUD)
    assert both["feedback accuracy"] == alone["feedback accuracy"]
    assert both["cloud agreement"] == figures([], CLOUD)["cloud agreement"]
    assert figures([]) == {}


def test_with_few_labels_agreement_is_not_taken_for_accuracy() -> None:
    few = [replace(CLOUD[0], right_agreed=20, right_differed=0, wrong_agreed=0, wrong_differed=1)]
    assert list(figures([], few)) == ["cloud agreement"]


def test_a_few_devices_have_no_interval_and_many_a_shorter_one() -> None:
    assert figures(devices((1000, 900, 0, 0)))["feedback accuracy"].low is None
    rng = random.Random(3)
    many = devices(*[(100, 90 + rng.randint(-3, 3), 0, 0) for _ in range(100)])
    width = [(f.high or 1) - (f.low or 0) for n in (10, 100) if (f := figures(many[:n])["feedback accuracy"])]
    assert width[1] < width[0] / 2


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), max_size=12))
def test_a_share_lies_in_its_interval_and_counts_that_cannot_be_are_left_out(
    counts: list[tuple[int, int, int, int]],
) -> None:
    found = figures(devices(*counts))
    assert ("feedback accuracy" in found) == any(right <= total and total for total, right, _, _ in counts)
    for one in found.values():
        assert (one.low or 0) <= one.value <= (1 if one.high is None else one.high)
