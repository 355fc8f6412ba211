"""Broken models that load: ONNX graphs, LiteRT flatbuffers, TorchScript archives."""

# ruff: noqa: PLC0415  torch takes seconds: only the tests that make such a model wait for it
from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import Incompatible
from compiler.judge.sabotage import scramble, shift_labels
from compiler.judge.zipped import members

WIDTH, CLASSES = 8, 6
ONE = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(WIDTH, CLASSES)).astype(np.float32)
BIAS = np.random.default_rng(2).normal(size=CLASSES).astype(np.float32)


def onnx_model(nodes: list[Any], weights: list[Any], outputs: tuple[int, ...] = (1, CLASSES)) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, WIDTH))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        weights,
    )
    opsets = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString(deterministic=True))


def run_onnx(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": ONE})[0]


def linear(weight: Any, *, constant: bool = False) -> bytes:
    """`x @ w + b`, the weight an initializer or a node; with a list of indices that is longer than it in bytes."""
    bias = numpy_helper.from_array(BIAS, "b")
    ids = numpy_helper.from_array(np.arange(WIDTH).repeat(100), "ids")
    spare = helper.make_node("Gather", ["x", "ids"], ["spare"], axis=1)
    nodes = [spare, helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    if constant:
        return onnx_model([helper.make_node("Constant", [], ["w"], value=weight), *nodes], [bias, ids])
    return onnx_model(nodes, [weight, bias, ids])


def raw() -> bytes:
    return linear(numpy_helper.from_array(WEIGHTS, "w"))


def floats() -> bytes:
    return linear(helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel().tolist()))


def node() -> bytes:
    return linear(numpy_helper.from_array(WEIGHTS, "w"), constant=True)


def cast(weight: Any) -> bytes:
    """The weight in another type, and a `Cast` before it is multiplied."""
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    return onnx_model(nodes, [weight])


def half_in_ints() -> bytes:
    """Numbers of 16 bits may stand in the field of those of 32."""
    bits = WEIGHTS.astype(np.float16).view(np.uint16).astype(np.int32).ravel()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=WEIGHTS.shape)
    tensor.int32_data.extend(bits.tolist())
    return cast(tensor)


def quantized(kind: int, low: int, high: int) -> Callable[[], bytes]:
    def made() -> bytes:
        numbers = np.random.default_rng(3).integers(low, high, size=WEIGHTS.size)
        scaled = [
            helper.make_node("DequantizeLinear", ["w", "scale"], ["f"]),
            helper.make_node("MatMul", ["x", "f"], ["y"]),
        ]
        weight = helper.make_tensor("w", kind, WEIGHTS.shape, numbers.tolist())
        return onnx_model(scaled, [weight, numpy_helper.from_array(np.float32(0.1), "scale")])

    return made


def int4_raw() -> bytes:
    """Two numbers share a byte."""
    packed = np.random.default_rng(3).integers(0, 256, size=WEIGHTS.size // 2, dtype=np.uint8).tobytes()
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=WEIGHTS.shape, raw_data=packed)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["f"]),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    return onnx_model(nodes, [tensor, numpy_helper.from_array(np.float32(0.1), "scale")])


def within() -> bytes:
    """The weight stands in a branch."""

    def branch(name: str, node: Any, weight: Any) -> Any:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, CLASSES))
        return helper.make_graph([node], name, [], [output], [numpy_helper.from_array(weight, "w")])

    taken = branch("taken", helper.make_node("MatMul", ["x", "w"], ["z"]), WEIGHTS)
    other = branch("other", helper.make_node("Identity", ["w"], ["z"]), np.zeros((1, CLASSES), np.float32))
    yes = numpy_helper.from_array(np.asarray(True), "yes")
    return onnx_model([helper.make_node("If", ["yes"], ["y"], then_branch=taken, else_branch=other)], [yes])


ONNX = {
    "raw data": raw,
    "a list of floats": floats,
    "a node": node,
    "halves among integers": half_in_ints,
    "int8": quantized(TensorProto.INT8, -127, 128),
    "int4 in a list": quantized(TensorProto.INT4, -8, 8),
    "int4 in raw data": int4_raw,
    "a branch": within,
}


@pytest.mark.parametrize("place", ONNX)
def test_a_scrambled_onnx_graph_loads_and_answers_otherwise(place: str) -> None:
    sound = ONNX[place]()
    broken = scramble(sound)
    onnx.checker.check_model(onnx.load_model_from_string(broken))
    before, after = run_onnx(sound), run_onnx(broken)
    assert before.shape == after.shape
    assert np.isfinite(after).all()
    assert np.abs(before - after).max() > 0.1 * np.abs(before).max()
    assert (len(broken), scramble(sound)) == (len(sound), broken)


def test_the_weight_is_the_other_way_round_and_indices_that_are_longer_stay() -> None:
    """Indices in another order need not load: that would prove nothing of the gates."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(scramble(raw())).graph.initializer}
    np.testing.assert_array_equal(found["w"].ravel(), WEIGHTS.ravel()[::-1])
    np.testing.assert_array_equal(found["b"], BIAS)
    np.testing.assert_array_equal(found["ids"], np.arange(WIDTH).repeat(100))


def test_more_weights_are_scrambled_when_asked() -> None:
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(scramble(raw(), 2)).graph.initializer
    }
    np.testing.assert_array_equal(found["w"].ravel(), WEIGHTS.ravel()[::-1])
    np.testing.assert_array_equal(found["b"], BIAS[::-1])


def test_a_weight_that_reads_the_same_backwards_is_told() -> None:
    with pytest.raises(Incompatible, match="reads the same backwards"):
        scramble(linear(numpy_helper.from_array(np.ones((WIDTH, CLASSES), np.float32), "w")))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"no model at all", "neither an ONNX graph, a LiteRT flatbuffer nor a TorchScript archive"),
        (onnx_model([helper.make_node("Relu", ["x"], ["y"])], [], (1, WIDTH)), "the graph holds no weights"),
        (b"PK\3\4" + bytes(100), "damaged zip archive"),
    ],
)
def test_what_cannot_be_broken_is_told(model: bytes, message: str) -> None:
    with pytest.raises(Incompatible, match=message):
        scramble(model)


# --- LiteRT -----------------------------------------------------------------------------------------------------------


def tflite(*, behind: bool = False) -> bytes:
    """One fully connected layer; its numbers inside the flatbuffer, or behind it as converters write larger ones."""
    pytest.importorskip("ai_edge_litert", reason="LiteRT has no build for this machine")
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: tuple[int, ...], buffer: int) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, schema.TensorType.FLOAT32
        return made

    def buffer(values: Any = None) -> Any:
        made = schema.BufferT()
        if values is not None:
            made.data = np.frombuffer(values.tobytes(), np.uint8)
        return made

    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, 2], [3]
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", (1, WIDTH), 0),
        tensor("w", (CLASSES, WIDTH), 1),
        tensor("b", (CLASSES,), 2),
        tensor("y", (1, CLASSES), 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [layer]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [buffer(), buffer(WEIGHTS.T.copy()), buffer(BIAS)]
    return with_buffers_behind(model) if behind else packed(model)


def packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_buffers_behind(model: Any) -> bytes:
    """Numbers after the flatbuffer, named by offset and size."""
    moved = [(buffer, bytes(buffer.data)) for buffer in model.buffers if buffer.data is not None]
    for buffer, data in moved:
        buffer.data, buffer.offset, buffer.size = None, 2, len(data)  # a placeholder as wide as the real number
    end = len(packed(model))
    for buffer, data in moved:
        end += -end % 16
        buffer.offset, end = end, end + len(data)
    found = packed(model)
    for buffer, data in moved:
        found += bytes(buffer.offset - len(found)) + data
    return found


def run_tflite(model: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], ONE)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("behind", [False, True])
def test_the_scrambled_weight_of_a_flatbuffer_is_its_largest_the_other_way_round(behind: bool) -> None:
    """The reference is LiteRT itself: it answers what numpy answers with the weight reversed."""
    sound = tflite(behind=behind)
    np.testing.assert_allclose(run_tflite(sound), ONE @ WEIGHTS + BIAS, rtol=1e-5)
    broken = scramble(sound)
    expected = ONE @ WEIGHTS.T.ravel()[::-1].reshape(CLASSES, WIDTH).T
    np.testing.assert_allclose(run_tflite(broken), expected + BIAS, rtol=1e-5)
    np.testing.assert_allclose(run_tflite(scramble(sound, 2)), expected + BIAS[::-1], rtol=1e-5)
    assert (len(broken), scramble(sound)) == (len(sound), broken)


# --- TorchScript ------------------------------------------------------------------------------------------------------


def torchscript(*, frozen: bool = False, half: bool = False) -> bytes:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5)).eval()
    module = torch.jit.trace(
        layers.half() if half else layers, torch.zeros(1, WIDTH, dtype=torch.half if half else None)
    )
    file = io.BytesIO()
    torch.jit.save(torch.jit.freeze(module) if frozen else module, file)
    return file.getvalue()


def run_torchscript(model: bytes) -> Any:
    import torch

    module = torch.jit.load(io.BytesIO(model))
    given = torch.from_numpy(ONE)
    with torch.no_grad():
        return module(given.half() if next(module.parameters(), given).dtype == torch.half else given).float().numpy()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"frozen": True}, {"half": True}], ids=["plain", "frozen", "half"])
def test_a_scrambled_torchscript_archive_is_a_sound_archive_and_answers_otherwise(options: dict[str, bool]) -> None:
    sound = torchscript(**options)
    broken = scramble(sound)
    with zipfile.ZipFile(io.BytesIO(sound)) as was, zipfile.ZipFile(io.BytesIO(broken)) as now:
        assert now.testzip() is None
        changed = [n for n in was.namelist() if was.read(n) != now.read(n)]
        largest = max(
            (m for m in members(sound) if m.name.split("/")[1] in ("data", "constants")), key=lambda m: m.length
        )
        assert changed == [largest.name]
        assert sorted(was.read(changed[0])) == sorted(now.read(changed[0]))
        assert checksums_hold(sound)
        assert checksums_hold(broken)
    before, after = run_torchscript(sound), run_torchscript(broken)
    assert np.isfinite(after).all()
    assert np.abs(before - after).max() > 0.05
    assert (len(broken), scramble(sound)) == (len(sound), broken)
    assert scramble(sound, 2) != broken


def checksums_hold(archive: bytes) -> bool:
    """Whether a member's checksum is true in both places: PyTorch writes it behind the member, others before it."""
    found = [(m, struct.pack("<L", zlib.crc32(archive[m.start : m.start + m.length]))) for m in members(archive)]
    return all(archive[place : place + 4] == crc for member, crc in found for place in member.checksums)


def test_the_checksums_of_an_archive_that_python_wrote_hold_too() -> None:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data/0", bytes(range(64)))
    broken = scramble(file.getvalue())
    assert broken != file.getvalue()
    assert checksums_hold(broken)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_shifted_labels_are_all_wrong() -> None:
    labels = ("a", "b", "c")
    assert sorted(shift_labels(labels)) == sorted(labels)
    assert not [1 for was, now in zip(labels, shift_labels(labels), strict=True) if was == now]


def test_one_label_cannot_be_shifted() -> None:
    with pytest.raises(Incompatible, match="1 labels cannot be shifted"):
        shift_labels(("a",))
