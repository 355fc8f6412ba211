"""The codec of the Open Inference Protocol by itself: raw bytes, texts, and what is refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import LABELS, pipeline
from tiny_tasks import TASKS

from agent.errors import Malformed
from agent.serving import oip
from agent.serving.interface import DATATYPES, Interface
from agent.serving.service import Answer
from agent.serving.tensors import write_texts
from wire.processing import Result


def served(task: str | None = None) -> Any:
    """A model as the codec sees it."""
    about, labels = (pipeline(), LABELS) if task is None else (TASKS[task].pipeline, TASKS[task].labels)
    return SimpleNamespace(
        pipeline=about,
        labels=labels,
        interface=Interface.of(about, labels),
        layouts={},
        heads={},
        names={},
        digest="sha256:1",
    )


def parse(model: Any, head: dict[str, Any], raw: bytes) -> oip.Request:
    data = json.dumps(head).encode()
    return oip.parse_request(data + raw, model, str(len(data)))


def tensor(name: str, datatype: str, shape: list[int], size: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def element(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


@given(st.lists(st.text(), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_texts_survive_as_raw_bytes(texts: list[str]) -> None:
    about, raw = write_texts("text", texts, binary=True)
    assert about["parameters"] == {"binary_data_size": len(raw)}
    assert parse(served(), {"inputs": [about]}, raw).examples == tuple(texts)


@pytest.mark.parametrize(
    ("raw", "size", "said"),
    [
        (element(b"ab"), 7, "6 bytes of binary data follow"),
        (element(b"ab"), -1, "binary_data_size -1"),
        (element(b"ab"), True, "binary_data_size True"),
        (element(b"ab"), 5, "1 bytes follow the JSON"),
        (b"\xff\xff\xff\xffab", 6, "ends within an element"),
        (element(b"ab") + b"\x01", 7, "ends within the length"),
        (element(b"\xff"), 5, "element 0 of binary data is not UTF-8"),
        (element(b"a") + element(b"b"), 10, r"expected \[2\]"),
        (element(b"a" * 8193), 8197, "over 8192 bytes"),
        (b"", 0, r"expected \[0\]"),
    ],
)
def test_raw_texts_that_do_not_hold_are_refused(raw: bytes, size: object, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        parse(served(), {"inputs": [tensor("text", "BYTES", [1], size)]}, raw)


@pytest.mark.parametrize(
    ("length", "said"),
    [("1000", "up to 12"), ("-1", "expected the length"), ("x", "expected the length"), ("²", "expected the length")],
)
def test_a_length_of_the_json_that_is_none_is_refused(length: str, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        oip.parse_request(b'{"inputs":1}', served(), length)


ARRAYS = {"a": np.int64([[3, -4]]), "b": np.float32([[0.5, 1.5, 2.5]])}
HEAD = {
    "inputs": [tensor("a", "INT64", [1, 2], 16), tensor("b", "FP32", [1, 3], 12)],
    "parameters": {"binary_data_output": True},
}
RAW = ARRAYS["a"].tobytes() + ARRAYS["b"].tobytes()


def test_the_same_form_again_is_read_by_what_the_first_left_and_gives_the_same() -> None:
    model = served("tensors")
    first, second = parse(model, HEAD, RAW), parse(model, HEAD, RAW)
    assert len(model.layouts) == 1
    for request in (first, second):
        assert (request.outputs, request.binary) == (("minus", "double"), {"minus", "double"})
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(request.examples[0][name], values)
            assert request.examples[0][name].dtype == values.dtype
            assert request.examples[0][name].flags.aligned
    other = np.float32([[9, 8, 7]])
    again = parse(model, HEAD, ARRAYS["a"].tobytes() + other.tobytes())
    np.testing.assert_array_equal(again.examples[0]["b"], other)


def test_the_same_form_with_more_or_less_behind_it_is_refused_again() -> None:
    model = served("tensors")
    parse(model, HEAD, RAW)
    for raw in (RAW[:-1], RAW + b"\0"):
        with pytest.raises(Malformed, match="bytes"):
            parse(model, HEAD, raw)


def test_a_request_with_an_id_is_not_taken_for_another() -> None:
    model = served("tensors")
    assert [parse(model, {**HEAD, "id": name}, RAW).id for name in ("one", "two")] == ["one", "two"]
    assert model.layouts == {}


FLOATS = {"inputs": [{"name": "b", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 1.5, 2.5]}]}


def of_floats() -> Any:
    """A model of one tensor of floating-point numbers."""
    model = served("tensors")
    model.interface = replace(model.interface, inputs=model.interface.inputs[1:])
    return model


def parse_json(model: Any, value: object) -> oip.Request:
    return oip.parse_request(json.dumps(value).encode(), model)


def floats(**changed: object) -> dict[str, Any]:
    return {"inputs": [{**FLOATS["inputs"][0], **changed}]}


@pytest.mark.parametrize(
    "data", [[9, 8, 7], [-0.0, 1e-45, 5e-324], [1, True, 0], [0.1, 1 / 3, 2**24 + 1], [2**53 + 1, 0.5, -1], [[4, 5, 6]]]
)
def test_json_of_a_form_that_was_read_before_is_read_as_at_first(data: list[Any]) -> None:
    model = of_floats()
    parse_json(model, FLOATS)
    assert len(model.layouts) == 1
    for known in (model, of_floats()):
        request = parse_json(known, floats(data=data))
        assert (request.id, request.outputs, request.binary) == (None, ("minus", "double"), frozenset())
        values = request.examples[0]["b"]
        assert (values.dtype, values.shape) == (np.float32, (1, 3))
        assert values.tobytes() == np.asarray(data, np.float64).astype(np.float32).tobytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": [1e39, 1, 2]}, "out of the range"),
        ({"data": [1, 2]}, "data"),
        ({"data": [True, False, True]}, "data"),
        ({"data": ["0.5", 1, 2]}, "data"),
        ({"data": "abc"}, "data"),
        ({"data": {"a": 1, "b": 2, "c": 3}}, "data"),
        ({"data": [None, 1, 2]}, "data"),
        ({"data": [[1], 2, 3]}, "data"),
        ({"shape": [True, 3]}, "shape"),
        ({"shape": [1.0, 3]}, "shape"),
        ({"shape": "[1, 3]"}, "shape"),
        ({"datatype": "FP64"}, "datatype"),
        ({"name": "c"}, "missing: b"),
        ({"parameters": {"shared_memory_region": "x"}}, "not supported"),
        ({"parameters": {"binary_data_size": 12}}, "0 bytes of binary data follow"),
    ],
)
def test_json_that_does_not_hold_is_refused_whether_or_not_its_form_was_read_before(
    changed: dict[str, Any], said: str
) -> None:
    known = of_floats()
    parse_json(known, FLOATS)
    errors = set()
    for model in (known, of_floats()):
        with pytest.raises(Malformed, match=said) as caught:
            parse_json(model, floats(**changed))
        errors.add(str(caught.value))
    assert len(errors) == 1


def test_what_else_json_asks_for_is_not_forgotten_when_its_form_was_read_before() -> None:
    model = of_floats()
    parse_json(model, FLOATS)
    assert parse_json(model, {**FLOATS, "id": "one"}).id == "one"
    assert parse_json(model, {**FLOATS, "outputs": [{"name": "minus"}]}).outputs == ("minus",)
    assert parse_json(model, {**FLOATS, "parameters": {"binary_data_output": True}}).binary == {"minus", "double"}
    assert len(model.layouts) == 1


def test_tensors_may_come_in_any_order() -> None:
    model = served("tensors")
    head = {**HEAD, "inputs": HEAD["inputs"][::-1]}
    for _ in range(2):
        (arrays,) = parse(model, head, ARRAYS["b"].tobytes() + ARRAYS["a"].tobytes()).examples
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(arrays[name], values)


def test_only_so_many_forms_are_remembered() -> None:
    model = served("tensors")
    for n in range(1, 3 * oip.LAYOUTS):
        head = {**HEAD, "inputs": [HEAD["inputs"][0], tensor("b", "FP32", [1, n], 4 * n)]}
        parse(model, head, ARRAYS["a"].tobytes() + bytes(4 * n))
        assert len(model.layouts) <= oip.LAYOUTS


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"datatype": "FP64"}, "datatype 'FP64', expected FP32"),
        ({"shape": [1, 4]}, r"12 bytes of binary data do not fill FP32 \[1, 4\]"),
        ({"shape": [3]}, r"shape \[3\], expected \[1, -1\]"),
        ({"shape": [1, True]}, "shape"),
        ({"parameters": {"binary_data_size": 12, "shared_memory_region": "x"}}, "shared_memory_region: not supported"),
        ({"parameters": 1}, "expected a JSON object"),
    ],
)
def test_raw_arrays_that_do_not_hold_are_refused(changed: dict[str, Any], said: str) -> None:
    head = {**HEAD, "inputs": [HEAD["inputs"][0], {**HEAD["inputs"][1], **changed}]}
    with pytest.raises(Malformed, match=said):
        parse(served("tensors"), head, RAW)


ROW = {"name": "b", "datatype": "FP32", "shape": [1, 3]}


@pytest.mark.parametrize("data", [[0.5, 1, 2], [[0.5, 1, 2]]])
def test_json_data_may_be_flat_or_nested_as_the_shape_says(data: list[Any]) -> None:
    (arrays,) = parse(served("tensors"), {"inputs": [HEAD["inputs"][0], {**ROW, "data": data}]}, RAW[:16]).examples
    np.testing.assert_array_equal(arrays["b"], [[0.5, 1, 2]])


@pytest.mark.parametrize(
    "data", [[[[0.5, 1, 2]]], [[0.5, 1], 2], [[0.5], [1, 2]], ["0.5", 1, 2], [None, 1, 2], [{}, 1, 2], "abc", None, {}]
)
def test_json_data_that_is_no_array_of_numbers_is_refused(data: object) -> None:
    with pytest.raises(Malformed, match="data"):
        parse(served("tensors"), {"inputs": [HEAD["inputs"][0], {**ROW, "data": data}]}, RAW[:16])


@pytest.mark.parametrize(
    "data", [[0.1, 1 / 3, 2**24 + 1], [1, True, 0], [-0.0, 1e-45, 5e-324], [3.4e38, -3.4e38, 1], [2**53 + 1, 0.5, -1]]
)
def test_numbers_in_a_flat_list_are_what_numpy_makes_of_them(data: list[Any]) -> None:
    (arrays,) = parse(served("tensors"), {"inputs": [HEAD["inputs"][0], {**ROW, "data": data}]}, RAW[:16]).examples
    assert (arrays["b"].dtype, arrays["b"].shape) == (np.float32, (1, 3))
    assert arrays["b"].tobytes() == np.asarray(data, np.float64).astype(np.float32).tobytes()


@pytest.mark.parametrize("data", [[1e39, 1, 2], [1, 2, -3.5e38], [True, False, True]])
def test_numbers_out_of_range_and_truth_values_are_no_floating_point_numbers(data: list[Any]) -> None:
    with pytest.raises(Malformed, match="data"):
        parse(served("tensors"), {"inputs": [HEAD["inputs"][0], {**ROW, "data": data}]}, RAW[:16])


@pytest.mark.parametrize("data", [["y" * 2000] + [""] * 500, [["y" * 2000] + [""] * 500]])
def test_texts_in_the_place_of_numbers_take_no_more_room_than_they_came_in(data: list[Any]) -> None:
    """Attack: numpy would give every one of them the room of the longest, n x 4 bytes each."""
    tracemalloc.start()
    with pytest.raises(Malformed, match="expected numbers of datatype FP32"):
        parse(served("tensors"), {"inputs": [HEAD["inputs"][0], {**ROW, "data": data}]}, RAW[:16])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize("dtype", [dtype for dtype in DATATYPES if dtype != "bool"])
@pytest.mark.parametrize("binary", [True, False])
def test_an_array_of_every_datatype_is_answered_in_both_forms(dtype: str, binary: bool) -> None:
    values = np.array([[0, 1, 2]], dtype)
    reply = answered({"minus": values[0], "double": values[0] + values[0]}, binary=binary)
    length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    value = json.loads(reply.body[:length])
    assert [t["datatype"] for t in value["outputs"]] == [DATATYPES[dtype]] * 2
    assert [t["shape"] for t in value["outputs"]] == [[1, 3]] * 2
    if binary:
        np.testing.assert_array_equal(np.frombuffer(reply.body[length:], dtype), [0, 1, 2, 0, 2, 4])
    else:
        assert [t["data"] for t in value["outputs"]] == [[0, 1, 2], [0, 2, 4]]


def test_each_output_may_be_asked_for_in_its_own_form() -> None:
    wanted = [{"name": "double", "parameters": {"binary_data": True}}, {"name": "minus"}]
    request = parse(served("tensors"), {"inputs": HEAD["inputs"], "outputs": wanted}, RAW)
    result = Result({"minus": np.int64([1, 2]), "double": np.float32([3.0])})
    reply = oip.answer_reply(Answer("m", served("tensors"), (result,)), request, "id")
    length = int(reply.headers["inference-header-content-length"])
    minus, double = json.loads(reply.body[:length])["outputs"]
    assert (minus["data"], double["parameters"]) == ([1, 2], {"binary_data_size": 4})
    assert reply.body[length:] == np.float32([3.0]).tobytes()


def answered(outputs: dict[str, np.ndarray], *, binary: bool) -> Any:
    model = served("tensors")
    names = ("minus", "double")
    request = oip.Request(None, (ARRAYS,), names, frozenset(names) if binary else frozenset())
    return oip.answer_reply(Answer("m", model, (Result(outputs),)), request, "id")
