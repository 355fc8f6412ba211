"""What a variant is believed for: laws of the fit, the threshold and the error, on answers made to order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.judge.calibrate import Answers, calibration_error, fit, isotonic, temperature, threshold
from wire.confidence import confidences

seeds = st.integers(0, 2**32 - 1)


def answers(seed: int, n: int = 1500, heat: float = 2.0, classes: int = 4) -> Answers:
    """Labels drawn from a softmax, and the scores of a model that is `heat` times as sure as it should be."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, classes))
    fair = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (fair.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    raised = np.exp(logits * heat - (logits * heat).max(axis=1, keepdims=True))
    scores = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return Answers(scores, true, (scores.argmax(axis=1) != true) & (random.random(n) < 0.5))


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0.5, 4))
def test_the_temperature_that_was_put_in_comes_out(seed: int, heat: float) -> None:
    assert temperature(answers(seed, heat=heat)).temperature == pytest.approx(heat, rel=0.25)


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(1.8, 4))
def test_a_model_that_is_too_sure_is_nearer_the_truth_after(seed: int, heat: float) -> None:
    found = fit(answers(seed, heat=heat), softmax=True, target_error=0.5)
    assert found.error < found.error_before
    assert found.n == 1500


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(2, 60))
def test_a_curve_never_falls_and_believes_in_no_certainty(seed: int, n: int) -> None:
    found = isotonic(answers(seed, n=n))
    assert all(b > a for a, b in zip(found.scores, found.scores[1:], strict=False))
    assert all(b >= a for a, b in zip(found.confidences, found.confidences[1:], strict=False))
    assert 0 < found.confidences[0] <= found.confidences[-1] < 1


def test_a_curve_is_the_one_of_the_slow_definition() -> None:
    """Pools of adjacent violators, by hand: right is 1 0 1 1 by rising score, so the first two are pooled."""
    scores = np.asarray([[0.4, 0.1], [0.5, 0.2], [0.6, 0.3], [0.8, 0.1]], np.float32)
    found = isotonic(Answers(scores, np.asarray([0, 1, 0, 0]), np.zeros(4, bool)))
    assert found.scores == pytest.approx((0.45, 0.7), abs=1e-6)
    assert found.confidences == pytest.approx((0.5, 5 / 6), abs=1e-6)


def test_what_no_temperature_can_mend_is_given_a_curve() -> None:
    """A model that is right nine times of ten whatever it says."""
    random = np.random.default_rng(3)
    best = random.uniform(0.5, 1, 2000)
    scores = np.stack([best, 1 - best], axis=1).astype(np.float32)
    true = (random.random(2000) > 0.9).astype(np.int64)
    found = fit(Answers(scores, true, np.zeros(2000, bool)), softmax=True, target_error=0.5)
    assert found.calibration.method == "isotonic"
    assert found.error < 0.03 < found.error_before


def test_scores_that_are_no_softmax_get_a_curve() -> None:
    assert fit(answers(1), softmax=False, target_error=0.5).calibration.method == "isotonic"


# --- the threshold ----------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.50001, 0.9, 1.0]), st.booleans()), min_size=1, max_size=60)


@given(rows, st.floats(0, 100))
def test_the_threshold_keeps_the_target_with_as_few_as_can_be(pairs: list[tuple[float, bool]], target: float) -> None:
    sure, spared = np.asarray([p[0] for p in pairs]), np.asarray([p[1] for p in pairs])
    found = threshold(sure, spared, target)

    def wrong(at: float) -> float:
        return 100 * float((spared & (sure >= at)).mean())

    lower = [at for at in sorted({0.0, *sure}) if at < found]
    if found < 1:
        assert wrong(found) <= target + 1e-6
    # Whatever threshold sends fewer up would leave too many wrong.
    assert all(wrong(at) > target - 1e-6 for at in lower if (sure < at).sum() < (sure < found).sum())


def test_a_variant_that_is_never_needlessly_wrong_asks_for_nothing() -> None:
    assert threshold(np.asarray([0.1, 0.9]), np.zeros(2, bool), 0.0) == 0.0


@given(seeds)
def test_the_error_is_0_to_1_and_0_of_a_model_that_knows(seed: int) -> None:
    random = np.random.default_rng(seed)
    sure, right = random.random(50), random.random(50) < 0.5
    assert 0 <= calibration_error(sure, right) <= 1
    assert calibration_error(right.astype(float), right) == 0


def test_the_same_answers_give_the_same_calibration() -> None:
    first, second = (fit(answers(5), softmax=True, target_error=1.0) for _ in range(2))
    assert first.calibration.to_bytes() == second.calibration.to_bytes()
    sure = confidences(answers(5).scores, first.calibration)
    assert float((sure < first.calibration.threshold).mean()) == first.escalated
