"""What a pipeline means: tensors in documents, pictures, sounds, words, activations, golden cases."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import CLS, SEP, WORDS, tokenizer_json
from tiny_tasks import TASKS, spec

from wire.errors import Incompatible, Malformed
from wire.pipeline import Audio, GoldenCase, Image, Pipeline, Tensor
from wire.processing import (
    Array,
    Processor,
    Result,
    activate,
    example_of,
    frames,
    golden_fault,
    picture,
    resize,
    to_array,
    to_tensor,
)

DTYPES = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
seeds = st.integers(0, 2**32 - 1)


# --- tensors ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4).map(tuple), seeds)
def test_an_array_comes_back_from_a_document_as_it_was(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    raw = np.random.default_rng(seed).bytes(math.prod(shape) * np.dtype(dtype).itemsize)
    values = np.frombuffer(raw, "uint8" if dtype == "bool" else dtype).reshape(shape)
    values = values > 127 if dtype == "bool" else values
    again = to_array(Tensor.from_bytes(to_tensor(values).to_bytes()))
    assert (again.dtype, again.shape) == (values.dtype, values.shape)
    assert again.tobytes() == values.tobytes()  # and with them every NaN


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tensor_is_little_endian_whatever_the_array_was_and_last_dimension_fastest(order: str) -> None:
    values = np.arange(6, dtype=f"{order}i4").reshape(3, 2).T
    expected = Tensor(dtype="int32", shape=(2, 3), data="AAAAAAIAAAAEAAAAAQAAAAMAAAAFAAAA")
    assert replace(to_tensor(values), dtype="int32") == expected
    assert to_array(expected).tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("data", "shape"), [("AAAA", (1,)), ("AAAAAA==", (2,)), ("AAAA AA==", (1,)), ("!", (1,)), ("é", (1,)), ("", (1,))]
)
def test_data_that_does_not_fit_is_malformed(data: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(Malformed, match="its data does not fit"):
        to_array(Tensor(dtype="float32", shape=shape, data=data))


# --- pictures -----------------------------------------------------------------------------------------------------


def slow_resize(values: Array, height: int, width: int) -> Array:
    """One pixel at a time, by the definition: bilinear between pixel centres, edges repeated."""
    old_height, old_width, channels = values.shape
    made = np.zeros((height, width, channels))

    def at(y: int, x: int, c: int) -> float:
        return float(values[min(max(y, 0), old_height - 1), min(max(x, 0), old_width - 1), c])

    for y, x, c in np.ndindex(made.shape):
        down, across = (y + 0.5) * old_height / height - 0.5, (x + 0.5) * old_width / width - 0.5
        top, left = math.floor(down), math.floor(across)
        v, h = down - top, across - left
        upper = at(top, left, c) * (1 - h) + at(top, left + 1, c) * h
        lower = at(top + 1, left, c) * (1 - h) + at(top + 1, left + 1, c) * h
        made[y, x, c] = upper * (1 - v) + lower * v
    return made


sides = st.integers(1, 7)


@given(st.tuples(sides, sides, st.integers(1, 4)), sides, sides, seeds)
def test_a_resized_picture_is_that_of_a_slow_loop(
    old: tuple[int, int, int], height: int, width: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 256, old).astype(np.float32)
    assert np.allclose(resize(values, height, width), slow_resize(values, height, width), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 20_000, 3), (20_000, 1, 3)])
def test_a_picture_of_one_line_takes_the_memory_of_what_it_becomes(shape: tuple[int, int, int]) -> None:
    """Attack: 60 kB whose whole rows, made 224 of, took 155 MiB."""
    values = np.zeros(shape, np.float32)
    tracemalloc.start()
    assert resize(values, 224, 224).shape == (224, 224, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 224 * 224 * 3 * 4


@given(sides, sides, seeds)
def test_a_picture_is_scaled_and_laid_out(height: int, width: int, seed: int) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    around = Image(height=height, width=width, channels=3, layout="NHWC", scale=1 / 255, mean=mean, std=std)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    last = picture(values, around)
    assert (last.shape, last.dtype) == ((1, height, width, 3), np.dtype(np.float32))
    for y, x, c in np.ndindex(values.shape):
        assert last[0, y, x, c] == pytest.approx((values[y, x, c] / 255 - mean[c]) / std[c], abs=1e-5)
    first = picture(values, replace(around, layout="NCHW"))
    assert np.array_equal(first, last.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), "u1")],
)
def test_a_picture_of_another_form_is_malformed(values: Array) -> None:
    with pytest.raises(Malformed, match=r"expected uint8 \[height, width, 3\]"):
        picture(values, Image(height=2, width=2, channels=3, layout="NHWC"))


# --- sounds -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_frames_are_whole_and_start_every_hop(samples: int, sizes: tuple[int, int]) -> None:
    frame, hop = sizes
    values = np.arange(1, samples + 1, dtype=np.float32)
    found = list(frames(values, Audio(rate=16000, frame=frame, hop=hop, scale=2.0)))
    assert len(found) == max(1, (samples - frame) // hop + 1)
    for i, one in enumerate(found):
        expected = [2 * (i * hop + k + 1) if i * hop + k < samples else 0 for k in range(frame)]
        assert one.tolist() == expected
        assert one.dtype == np.float32


@pytest.mark.parametrize("values", [np.zeros((2, 2), np.float32), np.zeros(2), np.zeros(0, np.float32)])
def test_a_sound_of_another_form_is_malformed(values: Array) -> None:
    with pytest.raises(Malformed, match=r"expected float32 \[samples\]"):
        list(frames(values, Audio(rate=16000, frame=2, hop=1)))


# --- texts --------------------------------------------------------------------------------------------------------


def processor(**changes: Any) -> Processor:
    task = TASKS["token-classification"]
    return Processor(replace(task.pipeline, **changes), task.labels, tokenizer_json())


def ids(one: Processor, text: str) -> list[int]:
    (feed,) = one.feeds(text)
    return feed["input_ids"][0].tolist()


texts = st.lists(st.sampled_from([*WORDS, "other", "\u200d", "\u0301"]), max_size=12).map(" ".join)
"""The tokenizer makes no token of a zero-width joiner by itself, nor of an accent."""


def identity(feeds: Any) -> dict[str, Array]:
    """A graph whose two logits of each token are its place, and 0."""
    places = np.arange(feeds["input_ids"].shape[1], dtype=np.float32)
    return {"logits": np.stack([places, np.zeros_like(places)], axis=1)[None]}


@given(texts)
def test_each_word_is_answered_by_its_first_token_or_the_one_before_it(text: str) -> None:
    one = processor(activation="none")
    result = one.run(text, identity)
    words = one.words(text)
    assert words == tuple(text.split())[: len(words)]
    assert len(result.labels) == len(words)
    at, expected = 1, []
    for word in words:
        width = len(ids(one, word)) - 2
        expected.append(at if width else at - 1)
        at += width
    assert result.outputs["scores"][:, 0].tolist() == expected


@given(texts)
def test_a_text_never_takes_more_tokens_than_the_model_has_and_keeps_its_frame(text: str) -> None:
    one = processor()
    found = ids(one, text)
    assert 2 <= len(found) <= 8
    assert (found[0], found[-1]) == (CLS, SEP)
    left_out = text.split()[len(one.words(text)) :]
    assert not left_out or len(found) + len(ids(one, left_out[0])) - 2 > 8


def test_a_word_of_no_token_is_there() -> None:
    """Or the two tests above say less than they seem to."""
    assert ids(processor(), "\u200d") == [CLS, SEP] or ids(processor(), "\u0301") == [CLS, SEP]


def test_a_text_is_padded_to_the_first_length_that_holds_it() -> None:
    inputs = tuple(spec(n, 1, -1, dtype="int32") for n in ("input_ids", "attention_mask", "token_type_ids"))
    one = processor(inputs=inputs, lengths=(4, 8))
    for text, width in (("on", 4), ("on off", 4), ("on off on", 8), ("on " * 20, 8)):
        (feed,) = one.feeds(text)
        assert {name: values.shape for name, values in feed.items()} == {i.name: (1, width) for i in inputs}
        used = min(8, len(text.split()) + 2)
        assert feed["attention_mask"][0].tolist() == [1] * used + [0] * (width - used)
        assert feed["input_ids"][0, used:].tolist() == [0] * (width - used)


@pytest.mark.parametrize("tokenizer", [None, b"", b"{}", b"\xff"])
def test_a_tokenizer_that_cannot_be_read_is_incompatible(tokenizer: bytes | None) -> None:
    task = TASKS["sentence-embedding"]
    with pytest.raises(Incompatible, match=r"tokenizer.json: not a tokenizer that can be read here"):
        Processor(task.pipeline, (), tokenizer)


# --- activations and answers --------------------------------------------------------------------------------------


rows = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5)


@given(rows, rows)
def test_activations_are_those_of_the_definitions(one: list[float], other: list[float]) -> None:
    values = np.float32([one, (other * len(one))[: len(one)]])
    exact = values.astype(np.float64)
    raised = np.exp(exact - exact.max(axis=1, keepdims=True))
    assert np.allclose(activate(values, "softmax"), raised / raised.sum(axis=1, keepdims=True), atol=1e-6)
    with np.errstate(over="ignore"):
        assert np.allclose(activate(values, "sigmoid"), 1 / (1 + np.exp(-exact)), atol=1e-6)
    lengths = np.linalg.norm(activate(values, "normalize"), axis=1)
    big = np.linalg.norm(exact, axis=1) > 1e-6
    assert np.allclose(lengths[big], 1, atol=1e-5)
    assert activate(values, "none") is values


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "normalize"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_an_activation_gives_float32_of_the_same_shape(kind: str, dtype: str) -> None:
    found = activate(np.array([[-3, 0, 3]], dtype), kind)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (1, 3))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "normalize"])
def test_scores_far_from_0_are_still_numbers(kind: str) -> None:
    with np.errstate(over="ignore"):  # numpy says so, and 1 / (1 + inf) is right
        assert np.isfinite(activate(np.float32([[-1e4, 1e4], [0, 0]]), kind)).all()


def test_an_answer_without_the_output_or_of_another_width_is_incompatible() -> None:
    task = TASKS["image-classification"]
    one = Processor(task.pipeline, task.labels, None)
    with pytest.raises(Incompatible, match="no output 'logits'; it has other"):
        one.run(task.cases[0][0], lambda _feed: {"other": np.zeros((1, 3), np.float32)})
    with pytest.raises(Incompatible, match="its first axis must be the batch"):
        one.run(task.cases[0][0], lambda _feed: {"logits": np.zeros((), np.float32)})
    with pytest.raises(Incompatible, match="the bundle has 3 labels"):
        one.run(task.cases[0][0], lambda _feed: {"logits": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("task", TASKS)
def test_an_example_of_another_form_is_malformed(task: str) -> None:
    around = TASKS[task].pipeline
    one = Processor(around, TASKS[task].labels, tokenizer_json() if around.tokenizer else None)
    for wrong in ({"other": np.zeros(1)}, {}) if around.tokenizer else ("a text", {"other": np.zeros(1)}, {}):
        with pytest.raises(Malformed, match=r"^input: expected"):
            one.feeds(wrong)


def test_arrays_of_another_shape_are_malformed_and_other_types_are_taken_over() -> None:
    around = Pipeline(task="tensors", inputs=(spec("x", 1, -1),), outputs=(spec("y", 1),), activation="none")
    one = Processor(around, (), None)
    (feed,) = one.feeds({"x": np.int64([[1, 2, 3]])})
    assert feed["x"].dtype == np.float32
    for shape in ((2, 2), (1,), (1, 1, 1)):
        with pytest.raises(Malformed, match=r"input x: expected the shape \[1, -1\]"):
            one.feeds({"x": np.zeros(shape)})


# --- golden cases -------------------------------------------------------------------------------------------------


def case(scores: Any, *labels: str) -> GoldenCase:
    return GoldenCase(text="a", outputs={"scores": to_tensor(np.float32(scores))}, labels=labels)


def fault(expected: GoldenCase, scores: Any, *labels: str) -> str | None:
    with np.errstate(invalid="ignore"):  # numpy says that inf - inf is none
        return golden_fault(expected, Result({"scores": np.float32(scores)}, labels), 0.05)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.7, 0.3], None),
        ([0.74, 0.26], None),
        ([0.76, 0.24], "is 0.06 away from what is expected, the tolerance is 0.05"),
        ([NAN, 0.3], "is nan away"),
        ([NAN, NAN], "is nan away"),
        ([INF, 0.3], "is inf away"),
        ([-INF, 0.3], "is inf away"),
        ([0.7], r"is \[1\], expected \[2\]"),
        ([[0.7, 0.3]], r"is \[1, 2\], expected \[2\]"),
        ([0.7, 0.3, 0.0], r"is \[3\], expected \[2\]"),
    ],
)
def test_a_case_holds_when_every_number_is_near_and_none_is_nan(scores: Any, said: str | None) -> None:
    found = fault(case([0.7, 0.3], "on"), scores, "on")
    if said is None:
        assert found is None
    else:
        assert found is not None
        with pytest.raises(ValueError, match=f"output scores {said}"):
            raise ValueError(found)


def test_an_expected_nan_never_holds() -> None:
    assert fault(case([NAN, 0.3], "on"), [NAN, 0.3], "on") is not None
    assert fault(case([INF, 0.3], "on"), [INF, 0.3], "on") is not None


def test_a_missing_output_is_named_and_one_more_is_none_of_its_business() -> None:
    assert golden_fault(case([0.7, 0.3]), Result({}), 0.05) == "output scores is missing, expected [2]"
    more = Result({"scores": np.float32([0.7, 0.3]), "other": np.float32([NAN])})
    assert golden_fault(case([0.7, 0.3]), more, 0.05) is None


@pytest.mark.parametrize(
    ("expected", "labels", "said"),
    [
        (case([0.7, 0.3], "on"), ("off",), "label 'off' where 'on' is expected"),
        (case([0.52, 0.48], "on"), ("off",), None),  # nearer to each other than twice the tolerance
        (case([0.7, 0.3], "on"), (), "0 labels where 1 are expected"),
        (case([0.7, 0.3]), ("on",), "1 labels where 0 are expected"),
        (case([[0.7, 0.3], [0.1, 0.9]], "on", "off"), ("on", "on"), "label 'on' where 'off' is expected"),
        (case([[0.7, 0.3], [0.5, 0.5]], "on", "off"), ("on", "on"), None),
        (case([[0.7, 0.3], [0.1, 0.9]], "on", "off"), ("on",), "1 labels where 2 are expected"),
        (case([0.9], "on"), ("off",), "label 'off' where 'on' is expected"),
    ],
)
def test_labels_must_be_the_expected_ones_where_the_scores_are_clear(
    expected: GoldenCase, labels: tuple[str, ...], said: str | None
) -> None:
    assert fault(expected, to_array(expected.outputs["scores"]), *labels) == said


@given(st.lists(st.floats(), min_size=1, max_size=4), st.lists(st.floats(), min_size=1, max_size=4))
def test_a_case_holds_only_for_numbers_within_the_tolerance(expected: list[float], got: list[float]) -> None:
    one = GoldenCase(text="a", outputs={"y": to_tensor(np.array(expected))})
    with np.errstate(over="ignore", invalid="ignore"):
        found = golden_fault(one, Result({"y": np.array(got)}), 0.1)
    holds = len(expected) == len(got) and all(abs(a - b) <= 0.1 for a, b in zip(expected, got, strict=False))
    assert (found is None) == holds


@pytest.mark.parametrize("task", TASKS)
def test_the_input_of_a_golden_case_is_the_example_that_it_was_made_of(task: str) -> None:
    for (example, *_), one in zip(TASKS[task].cases, TASKS[task].golden().cases, strict=True):
        again = example_of(GoldenCase.from_bytes(one.to_bytes()))
        if isinstance(example, str):
            assert again == example
        else:
            assert {name: (a.dtype, a.tolist()) for name, a in again.items()} == {
                name: (a.dtype, a.tolist()) for name, a in example.items()
            }
