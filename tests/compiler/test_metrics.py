"""The value of each example's answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from compiler.examples.examples import Label, Row
from compiler.judge.metrics import class_changes, labelled, name, values
from wire.pipeline import EMBEDDING, SCORES
from wire.processing import Result

LABELS = ("a", "b")
NAN = math.nan


def scored(*scores: Any) -> Result:
    """The answer with these scores: of one example, or one row for each word."""
    array = np.asarray(scores, np.float32)
    best = np.atleast_1d(array.argmax(axis=-1))
    return Result({SCORES: array}, tuple(LABELS[i] for i in best))


def rows(*labels: Label) -> list[Row]:
    return [Row("text", label) for label in labels]


def one(result: Result, source: Result, label: Label = None) -> float:
    (value,) = values([result], rows(label), [source])
    return value


def test_an_answer_is_right_or_wrong_by_its_label() -> None:
    given = [scored(0.9, 0.1), scored(0.4, 0.6), scored(0.7, 0.3)]
    assert values(given, rows("a", "b", "b"), given) == [1.0, 1.0, 0.0]


def test_a_model_that_answers_nan_is_never_right() -> None:
    """A NaN compares false with everything: without a check the first label would win."""
    assert one(scored(NAN, 0.1), scored(0.9, 0.1), "a") == 0.0
    assert one(scored(0.1, NAN), scored(0.9, 0.1)) == 0.0
    assert one(Result({EMBEDDING: np.asarray([NAN, 1.0])}), Result({EMBEDDING: np.asarray([0.0, 1.0])})) == 0.0


def test_a_source_that_answers_nan_is_not_right_either() -> None:
    assert one(scored(NAN, NAN), scored(NAN, NAN)) == 0.0


def test_of_words_the_share_that_is_right_counts_and_those_that_were_cut_off_are_wrong() -> None:
    given = scored((0.9, 0.1), (0.2, 0.8), (0.6, 0.4))
    assert one(given, given, ("a", "b", "b", "a")) == 0.5
    assert one(scored((0.9, 0.1), (NAN, 0.8)), given, ("a", "b")) == 0.5


def test_without_labels_the_sources_own_answers_are_the_right_ones() -> None:
    """The cosine of scores that all lie near each other is 0.99 for any two answers: their labels tell them apart."""
    source, other = scored(0.51, 0.49), scored(0.49, 0.51)
    assert values([source, other], rows(None, None), [source, source]) == [1.0, 0.0]
    assert one(scored((0.9, 0.1), (0.9, 0.1)), scored((0.9, 0.1), (0.1, 0.9))) == 0.5


def test_the_one_label_of_a_model_says_nothing_and_its_score_does() -> None:
    source, quiet = (Result({SCORES: np.asarray([s], np.float32)}, ("word",)) for s in (0.9, 0.3))
    assert one(source, source) == 1.0
    assert one(quiet, source) == pytest.approx(0.6)


def test_of_unit_vectors_the_likeness_is_their_cosine() -> None:
    chooser = np.random.default_rng(3)
    for _ in range(20):
        a, b = (v / np.linalg.norm(v) for v in chooser.normal(size=(2, 8)) + 0.5)
        got = one(Result({EMBEDDING: b.astype(np.float32)}), Result({EMBEDDING: a.astype(np.float32)}))
        assert got == pytest.approx(max(0.0, float(a @ b)), abs=1e-6)


def test_a_number_that_is_half_of_what_it_was_is_not_alike() -> None:
    """The cosine of single numbers is 1 whatever they are."""
    assert one(Result({"y": np.asarray([0.5])}), Result({"y": np.asarray([1.0])})) == pytest.approx(0.8)


def test_a_good_output_does_not_hide_a_bad_one() -> None:
    source = Result({"big": np.full(100, 9.0), "small": np.asarray([1.0, 0.0])})
    assert one(Result({"big": np.full(100, 9.0), "small": np.asarray([0.0, 1.0])}), source) == 0.0


@pytest.mark.parametrize("output", [None, np.ones(3), np.ones((2, 1)), np.full(2, np.inf), np.full(2, 1e200)])
def test_an_output_that_is_missing_or_of_another_form_or_size_is_not_alike(output: Any) -> None:
    source = Result({"y": np.ones(2)})
    assert one(Result({} if output is None else {"y": output}), source) == pytest.approx(0.0)


def test_outputs_of_nothing_but_zeros_are_alike() -> None:
    zeros = Result({"y": np.zeros(4, np.int64)})
    assert one(zeros, zeros) == 1.0


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        values([scored(0.9, 0.1)], rows("a", "b"), [scored(0.9, 0.1)] * 2)


def test_what_the_numbers_are_called_tells_what_they_were_compared_with() -> None:
    assert (name(rows("a")), labelled(rows("a"))) == ("accuracy", True)
    assert (name(rows(None)), labelled(rows(None))) == ("agreement", False)


def test_what_became_of_each_label_is_counted() -> None:
    source = [scored(0.9, 0.1), scored(0.9, 0.1), scored(0.1, 0.9)]
    variant = [scored(0.9, 0.1), scored(0.1, 0.9), scored(NAN, 0.9)]
    found = class_changes(source, variant, rows("a", "a", "b"))
    assert [(c.label, c.n, c.source, c.variant, c.both) for c in found] == [("a", 2, 2, 1, 1), ("b", 1, 1, 0, 0)]


def test_words_are_counted_one_by_one() -> None:
    source, variant = scored((0.9, 0.1), (0.9, 0.1)), scored((0.9, 0.1), (0.1, 0.9))
    found = class_changes([source], [variant], rows(("a", "b")))
    assert [(c.label, c.n, c.source, c.variant, c.both) for c in found] == [("a", 1, 1, 1, 1), ("b", 1, 0, 1, 0)]


def test_where_nothing_has_a_label_no_class_changes() -> None:
    vector = Result({EMBEDDING: np.ones(2)})
    assert class_changes([vector], [vector], rows(None)) == ()
