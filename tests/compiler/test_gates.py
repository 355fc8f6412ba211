"""The gates, as pure decisions."""

from __future__ import annotations

import math

import pytest

from compiler.gates import Accuracy, accuracy, accuracy_fault, golden_set, golden_set_fault
from compiler.report import card, percentile
from compiler.testset import Row
from wire.chunks import digest
from wire.evidence import Attempt, Evidence

ROWS = (Row("one", "a"), Row("two", "b"), Row("three", "b"))


def test_accuracy_counts_the_best_score_against_the_label() -> None:
    found = accuracy([(0.9, 0.1), (0.4, 0.6), (0.7, 0.3)], ROWS, ("a", "b"))
    assert (found.correct, found.n) == (2, 3)


def test_a_model_that_answers_nan_is_never_right() -> None:
    """A NaN compares false with everything: without a check the first label would win."""
    assert accuracy([(math.nan, 0.1)], ROWS[:1], ("a", "b")).correct == 0


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)]
)
def test_the_interval_is_wilsons(correct: int, n: int, low: float, high: float) -> None:
    """Reference values of the published formula."""
    assert Accuracy(correct, n).interval == pytest.approx((low, high), abs=1e-4)


def test_max_drop_is_in_points_of_a_percent() -> None:
    """A gate that compared the fraction 0.02 with the number 1 would let everything through."""
    source, variant = Accuracy(90, 100), Accuracy(88, 100)
    assert accuracy_fault(variant, source, 2.5) is None
    assert accuracy_fault(variant, source, 1.0) is not None


def test_the_accuracy_gate_refuses_a_model_that_knows_nothing() -> None:
    assert accuracy_fault(Accuracy(0, 100), Accuracy(90, 100), 10.0) is not None


def test_a_golden_set_holds_for_its_own_scores_and_not_for_others() -> None:
    scores = [(0.9, 0.1), (0.2, 0.8), (0.6, 0.4)]
    golden = golden_set(ROWS, scores, 0.05)
    assert golden_set_fault(golden, scores) is None
    assert "golden case 1" in str(golden_set_fault(golden, [scores[0], (0.3, 0.7), scores[2]]))
    assert golden_set_fault(golden, [(math.nan, math.nan)] * 3) is not None


def test_what_a_tool_says_does_not_break_the_table_of_the_card() -> None:
    attempts = (Attempt(recipe="r", outcome="failed", reason="no graph:\n  a | b"),)
    evidence = Evidence(
        subject=digest(b"x"), target="t", recipe="r", runtime="onnxruntime", precision="int8", device="d", versions={},
        dataset={"name": "t", "digest": "d"}, measurements=(), attempts=attempts,
    )  # fmt: skip
    assert card(evidence, {"name": "n", "version": "1", "profile": "p"}).endswith(
        "| r | failed | no graph: a \\| b |\n"
    )


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50.0, 99.0, 7.0)
