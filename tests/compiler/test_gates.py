"""The gates, and that no saboteur passes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import Incompatible, Untrusted
from compiler.examples.examples import Row
from compiler.judge import gates, metrics
from compiler.judge.gates import accuracy_fault, golden_set, golden_set_fault, judge, saboteur_verdicts
from compiler.judge.paired import decide, needed
from compiler.judge.sabotage import scramble, shift_labels
from compiler.search import prove
from compiler.variant import Variant
from wire.evidence import Decision
from wire.pipeline import EMBEDDING, SCORES, Golden, Pipeline, TensorSpec
from wire.processing import Processor, Result

LABELS = ("heat", "light", "lock", "tune")
WORDS, WIDTH = 6, 16
TOLERANCE = 0.05
SABOTEURS = ("scrambled weights", "shifted labels", "wrong pooling")


# --- a model that knows something, and its saboteurs ------------------------------------------------------------------


def prototypes() -> Any:
    return np.random.default_rng(1).normal(size=(len(LABELS), WIDTH)).astype(np.float32)


def make_rows() -> list[Row]:
    """Six words for each of 800 texts: the first is noise, each other leans to what the label means."""
    chooser, found = np.random.default_rng(2), []
    for i in range(800):
        words = chooser.normal(size=(1, WORDS, WIDTH)).astype(np.float32)
        words[0, 1:] += prototypes()[i % len(LABELS)]
        found.append(Row({"x": words}, LABELS[i % len(LABELS)]))
    return found


ROWS = make_rows()


def model(pooling: str) -> bytes:
    """ONNX: words pooled and multiplied with what each label means."""
    pool = {
        "mean": [helper.make_node("ReduceMean", ["x"], ["pooled"], axes=[1], keepdims=0)],
        "cls": [helper.make_node("Gather", ["x", "first"], ["pooled"], axis=1)],
    }
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(prototypes().T), "w"),
        numpy_helper.from_array(np.asarray(0), "first"),
    ]
    graph = helper.make_graph(
        [*pool[pooling], helper.make_node("MatMul", ["pooled", "w"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WORDS, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(LABELS)])],
        weights if pooling == "cls" else weights[:1],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def answers(graph: bytes, labels: tuple[str, ...] = LABELS) -> list[Result]:
    """What a variant with this graph answers, by its runtime and the pipeline."""
    pipeline = Pipeline(
        task="tensors",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, WORDS, WIDTH)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, len(LABELS))),),
        activation="softmax",
        labels="labels.json",
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    processor = Processor(pipeline, labels, None)
    return [processor.run(row.example, lambda feed: {"logits": session.run(None, dict(feed))[0]}) for row in ROWS]


def decision(results: Sequence[Result], rows: Sequence[Row] = ROWS, max_drop: float = 1.0) -> Decision:
    source = answers(model("mean"))
    values = [metrics.values(found, rows, source) for found in (source, results)]
    return decide(*values, max_drop, 0.95, metrics.name(rows))


def broken(name: str) -> list[Result]:
    if name == "scrambled weights":
        return answers(scramble(model("mean")))
    return answers(model("mean"), shift_labels(LABELS)) if name == "shifted labels" else answers(model("cls"))


def golden_results(results: Sequence[Result]) -> list[Result]:
    return [results[i] for i in gates.golden_places(ROWS)]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return golden_set(ROWS, answers(model("mean")), TOLERANCE)


def test_the_sound_variant_passes_both_gates(golden: Golden) -> None:
    again = answers(model("mean"))
    found = judge(golden, golden_results(again), decision(again))
    assert (found.golden, found.accuracy) == (None, None)


@pytest.mark.parametrize("name", SABOTEURS)
def test_each_gate_refuses_each_saboteur_in_words(name: str, golden: Golden) -> None:
    results = broken(name)
    found = saboteur_verdicts(name, golden, golden_results(results), decision(results))
    assert found.golden.startswith("golden case")
    assert "points" in found.accuracy
    assert judge(golden, golden_results(results), decision(results)).refused_by_all


@pytest.mark.parametrize("name", SABOTEURS)
def test_without_labels_the_accuracy_gate_refuses_each_saboteur_too(name: str) -> None:
    rows = [replace(row, label=None) for row in ROWS]
    assert accuracy_fault(decision(broken(name), rows)) is not None


@pytest.mark.parametrize("gate", ["golden_set_fault", "accuracy_fault"])
@pytest.mark.parametrize("name", SABOTEURS)
def test_a_gate_that_refuses_nothing_is_noticed(
    gate: str, name: str, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accident: a gate is switched off, as a threshold that is compared with the wrong unit does."""
    results = broken(name)
    monkeypatch.setattr(gates, gate, lambda *_: None)
    with pytest.raises(Untrusted, match=name):
        saboteur_verdicts(name, golden, golden_results(results), decision(results))


def test_a_source_no_better_than_chance_is_told_as_such(golden: Golden) -> None:
    """Labels that have nothing to do with the texts: scrambled weights lose nothing."""
    rows = [replace(row, label=LABELS[i // len(LABELS) % len(LABELS)]) for i, row in enumerate(ROWS)]
    results = broken("scrambled weights")
    with pytest.raises(Untrusted, match="no better than chance"):
        saboteur_verdicts("scrambled weights", golden, golden_results(results), decision(results, rows, 15.0))


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_what_is_inconclusive_does_not_pass_and_says_what_would_decide() -> None:
    found = decide([1.0] * 20, [1.0] * 20, 1.0, 0.95, "accuracy")
    enough = needed(1.0, 0.95, 1 / 20)
    told = f"20 examples do not decide that: 0 % of the answers changed, and then about {enough} "
    assert told in str(accuracy_fault(found))
    half = decide([1.0, 0.0] * 1000, [0.0, 1.0] * 1000, 1.0, 0.95, "accuracy")
    assert (half.changed, half.needed_seen) == (1.0, needed(1.0, 0.95, 1.0))
    assert half.needed_seen > half.needed, "the plan was for far fewer changes than were seen"


def test_max_drop_is_in_points_of_a_percent() -> None:
    """A gate that compared the fraction 0.02 with the number 1 would let everything through."""
    source, variant = [1.0] * 10_000, [0.0] * 200 + [1.0] * 9_800
    assert accuracy_fault(decide(source, variant, 2.5, 0.95, "accuracy")) is None
    fault = str(accuracy_fault(decide(source, variant, 1.0, 0.95, "accuracy")))
    assert fault.startswith("accuracy drops by 2.00 points, 95 % interval 1.7")


# --- golden sets ------------------------------------------------------------------------------------------------------


def scored(*scores: float) -> Result:
    return Result({SCORES: np.asarray(scores, np.float32)}, ("a" if scores[0] > scores[1] else "b",))


def texts(n: int) -> list[Row]:
    return [Row(f"text {i}", "ab"[i % 2]) for i in range(n)]


def test_a_golden_set_is_spread_over_the_labels_and_holds_for_its_own_answers_only() -> None:
    results = [scored(0.9, 0.1), scored(0.2, 0.8), scored(1.0, 0.0)]
    found = golden_set(texts(3), results, 0.05)
    assert [c.text for c in found.cases] == ["text 0", "text 1", "text 2"]
    assert found.max_abs == pytest.approx(0.05)
    assert golden_set_fault(found, results) is None
    assert "golden case 1" in str(golden_set_fault(found, [results[0], scored(0.3, 0.7), results[2]]))
    assert "2 answers to 3 golden cases" in str(golden_set_fault(found, results[:2]))


def test_answers_of_nan_hold_for_no_golden_set_and_make_none() -> None:
    found = golden_set(texts(1), [scored(0.9, 0.1)], 0.05)
    assert golden_set_fault(found, [scored(np.nan, np.nan)]) is not None
    with pytest.raises(Incompatible, match="scores holds NaN"):
        golden_set(texts(1), [scored(np.nan, 0.1)], 0.05)


def test_scores_that_hardly_differ_have_a_tolerance_as_narrow() -> None:
    """A model with random weights scores 0.52 against 0.48: a tolerance of 0.05 would take one label for the other."""
    found = golden_set(texts(1), [scored(0.52, 0.48)], 0.05)
    assert found.max_abs == pytest.approx(0.002)
    shifted = Result({SCORES: np.asarray([0.52, 0.48], np.float32)}, ("b",))
    assert "label 'b' where 'a' is expected" in str(golden_set_fault(found, [shifted]))


@pytest.mark.parametrize(("name", "numbers", "expected"), [(EMBEDDING, [0.2, -0.4], 0.02), ("boxes", [300, 20], 15.0)])
def test_the_tolerance_of_outputs_that_are_no_scores_is_a_share_of_the_largest(
    name: str, numbers: list[float], expected: float
) -> None:
    found = golden_set([Row("t")], [Result({name: np.asarray(numbers, np.float32)})], 0.05)
    assert found.max_abs == pytest.approx(expected)


def test_outputs_of_nothing_but_zeros_are_no_golden_set() -> None:
    with pytest.raises(Incompatible, match="every output of the variant is 0"):
        golden_set([Row("t")], [Result({"y": np.zeros(3)})], 0.05)


def test_sixteen_small_examples_are_taken_and_fewer_large_ones() -> None:
    def taken(side: int) -> Golden:
        rows = [Row({"image": np.full((side, side, 3), i, np.uint8)}, "ab"[i % 2]) for i in range(40)]
        return golden_set(rows, [scored(0.9, 0.1)] * 40, 0.05)

    small, large, one = taken(8), taken(300), taken(800)
    assert [len(g.cases) for g in (small, large, one)] == [16, 5, 1]
    assert len(large.to_bytes()) < gates.GOLDEN_BYTES
    assert golden_set_fault(large, [scored(0.9, 0.1)] * 5) is None
    assert Golden.from_bytes(one.to_bytes()) == one


def test_an_answer_too_large_to_travel_is_told() -> None:
    with pytest.raises(Incompatible, match="one example and its answer take"):
        golden_set([Row("t")], [Result({"y": np.ones(2_000_000, np.float32)})], 0.05)


def test_a_text_without_words_has_no_scores_and_does_no_harm() -> None:
    empty = Result({SCORES: np.zeros((0, 2), np.float32)})
    found = golden_set([Row("", None), Row("a b")], [empty, Result({SCORES: np.eye(2)}, ("a", "b"))], 0.05)
    assert golden_set_fault(found, [empty, Result({SCORES: np.eye(2)}, ("a", "b"))]) is None


class Told:
    """In a bench's place: saboteurs answer one after the other as they are told to."""

    def __init__(self, *answers: list[Result]) -> None:
        self.left = list(answers)

    def results(self, variants: Sequence[Variant]) -> list[list[Result]]:
        return [self.left.pop(0) for _ in variants]

    def decide(self, found: Sequence[Result]) -> Decision:
        return decision(found)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    made = Variant(tmp_path / "variant", "onnxruntime")
    made.folder.mkdir()
    made.model.write_bytes(model("mean"))
    return made


def test_more_weights_are_scrambled_where_the_model_is_as_good_without_one(golden: Golden, variant: Variant) -> None:
    bench: Any = Told(answers(model("mean")), broken("scrambled weights"))
    found = prove._scrambled(variant, prove.Gate(bench, golden, tuple(gates.golden_places(ROWS))))
    assert (found.name, bench.left) == ("scrambled weights (largest 2)", [])


def test_a_golden_set_that_accepts_what_accuracy_refuses_fails_the_build_at_once(
    golden: Golden, variant: Variant
) -> None:
    """The fault is in the gate: it holds the very examples that the broken copy still answers."""
    sound, lost, places = answers(model("mean")), broken("scrambled weights"), gates.golden_places(ROWS)
    blind = [sound[i] if i in places else lost[i] for i in range(len(ROWS))]
    bench: Any = Told(blind, lost)
    with pytest.raises(Untrusted, match=r"'scrambled weights \(largest 1\)': the golden set accepts it"):
        prove._scrambled(variant, prove.Gate(bench, golden, tuple(places)))
    assert bench.left == [lost], "nothing else was broken until the gate refused"
