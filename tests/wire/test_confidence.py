"""How sure an answer is: temperature and curve, the documents that hold them, and old pipelines without either."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import LABELS, pipeline, tokenizer_json
from tiny_tasks import TASKS

from wire.agreement import UNKNOWN, UNSURE, Agreement, merge, stratum
from wire.confidence import confidence, confidences, tempered
from wire.errors import Malformed
from wire.pipeline import Calibration, Pipeline
from wire.processing import Processor, activate

KEPT = {"threshold": 0.5, "target_error": 0.5}
logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6).map(lambda v: np.asarray(v, np.float32))


def warm(temperature: float) -> Calibration:
    return Calibration(method="temperature", temperature=temperature, **KEPT)


@given(logits, st.floats(0.1, 10))
def test_a_temperature_on_probabilities_is_one_on_the_logits(values: np.ndarray, temperature: float) -> None:
    wide = values.astype(np.float64) / temperature
    expected = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    assert np.allclose(tempered(activate(values, "softmax")[None], temperature)[0], expected, atol=1e-4)


@given(logits, st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_higher_temperature_is_never_surer_and_no_label_changes(values: np.ndarray, a: float, b: float) -> None:
    scores, (cold, hot) = activate(values, "softmax"), sorted((a, b))
    assert confidence(scores, warm(hot)) <= confidence(scores, warm(cold)) + 1e-9
    assert 1 / len(values) - 1e-9 <= confidence(scores, warm(hot)) <= 1
    assert tempered(scores[None], hot)[0].max() == tempered(scores[None], hot)[0][scores.argmax()]


def test_scores_of_zero_have_a_confidence() -> None:
    found = confidence(np.asarray([1.0, 0.0, 0.0], np.float32), warm(5.0))
    assert math.isfinite(found)
    assert 0.99 < found <= 1


def test_a_curve_is_read_between_its_points_and_flat_outside() -> None:
    curve = Calibration(method="isotonic", scores=(0.4, 0.8), confidences=(0.2, 0.6), **KEPT)
    scores = np.asarray([[0.3, 0.1], [0.5, 0.6], [0.95, 0.05]], np.float32)
    assert confidences(scores, curve) == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"threshold": 1.5}, "threshold"),
        ({"target_error": -1.0}, "target error"),
        ({"scores": (0.1,)}, "as many confidences"),
        ({"method": "isotonic"}, "at least one"),
        ({"method": "isotonic", "scores": (0.1, 0.1), "confidences": (0.1, 0.2)}, "rising scores"),
        ({"method": "isotonic", "scores": (0.1, 0.2), "confidences": (0.3, 0.2)}, "never fall"),
        ({"method": "isotonic", "scores": (0.1, 0.2), "confidences": (0.3, 1.2)}, "0 to 1"),
        ({"method": "histogram"}, "expected one of"),
    ],
)
def test_a_calibration_that_cannot_be_is_malformed(fields: dict[str, Any], said: str) -> None:
    value = {"method": "temperature", **KEPT, **fields}
    with pytest.raises(Malformed, match=said):
        Calibration.from_value({k: list(v) if isinstance(v, tuple) else v for k, v in value.items()})


def test_only_a_classification_has_one_and_a_temperature_only_of_a_softmax() -> None:
    with pytest.raises(Malformed, match="task sentence-embedding has none"):
        replace(TASKS["sentence-embedding"].pipeline, calibration=warm(1.0))
    with pytest.raises(Malformed, match="needs softmax"):
        replace(pipeline(), activation="sigmoid", calibration=warm(1.0))


def test_a_pipeline_of_before_reads_and_writes_the_same_bytes() -> None:
    old = pipeline().to_bytes()
    assert b"calibration" not in old
    assert Pipeline.from_bytes(old).to_bytes() == old
    new = pipeline(warm(2.0)).to_bytes()
    assert Pipeline.from_bytes(new).calibration == warm(2.0)


def test_a_result_is_sure_only_where_its_pipeline_is_calibrated_and_scores_stay() -> None:
    def graph(_feeds: Any) -> Any:
        return {"logits": np.asarray([[1.0, 3.0, 0.0]], np.float32)}

    plain = Processor(pipeline(), LABELS, tokenizer_json()).run("on", graph)
    sure = Processor(pipeline(warm(2.0)), LABELS, tokenizer_json()).run("on", graph)
    assert plain.confidence is None
    assert sure.confidence == pytest.approx(math.exp(1.5) / (math.exp(0.5) + math.exp(1.5) + 1), abs=1e-6)
    assert (plain.labels, plain.outputs["scores"].tolist()) == (sure.labels, sure.outputs["scores"].tolist())


# --- counts ---------------------------------------------------------------------------------------------------------

counted = st.builds(Agreement, stratum=st.integers(0, UNKNOWN), answers=st.integers(0, 9), agreed=st.integers(0, 9))


@given(st.lists(counted, max_size=8), st.integers(0, 8))
def test_counts_are_the_same_in_whatever_order_they_are_added(counts: list[Agreement], at: int) -> None:
    assert merge(counts) == merge(reversed(counts)) == merge([*merge(counts[:at]), *merge(counts[at:])])
    assert sum(one.answers for one in merge(counts)) == sum(one.answers for one in counts)


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_answer_below_the_threshold_is_in_a_stratum_of_its_own(sure: float, threshold: float) -> None:
    assert (stratum(sure, threshold) == UNSURE) == (sure < threshold)
    assert stratum(None, threshold) == UNKNOWN
    assert stratum(1.0, threshold) == 9
