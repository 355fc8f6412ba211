"""ONNX and TFLite files: what is read of them, and an error for each way to be broken, strange or dangerous."""

# ruff: noqa: PLC0415  onnx and the flatbuffer schema are imported where a file is made
from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.errors import Incompatible, Malformed
from compiler.sources.read import read
from wire.pipeline import Audio, TensorSpec

IMAGE = '[image]\nheight = 8\nwidth = 8\nchannels = 1\nlayout = "NCHW"\n'


def spec(name: str, *shape: int, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


# --- ONNX -----------------------------------------------------------------------------------------------------------


def onnx_model(
    nodes: Sequence[Any] = (),
    shape: Sequence[Any] = ("batch", 1, 8, 8),
    weight: Any = None,
    kind: int = 1,
    domains: Sequence[str] = (),
) -> Any:
    """Pixels `[batch, 1, 8, 8]` to logits `[batch, 3]`, and the two largest of them as a second output."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.ones((64, 3), np.float32) if weight is None else weight
    made = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        *nodes,
    ]
    graph = helper.make_graph(
        made,
        "digits",
        [helper.make_tensor_value_info("x", kind, shape)],
        [
            helper.make_tensor_value_info("flat", TensorProto.FLOAT, ("batch", 64)),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 3)),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def save(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def described(path: Path, text: str) -> Path:
    path.with_suffix(".toml").write_text(text)
    return path


def test_an_onnx_file_without_a_description_is_a_model_of_tensors(tmp_path: Path) -> None:
    source = read(str(save(tmp_path / "m.onnx", onnx_model())), None)
    assert (source.kind, source.task, source.labels, source.activation) == ("onnx", "tensors", (), "none")
    assert source.inputs == (spec("x", 1, 1, 8, 8),)
    assert source.outputs == (spec("flat", 1, 64), spec("logits", 1, 3))
    assert source.size == (tmp_path / "m.onnx").stat().st_size


def test_the_description_beside_the_file_says_what_it_is_for(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", onnx_model())
    plain = read(str(path), None).digest
    described(
        path, 'task = "image-classification"\nlabels = ["a", "b", "c"]\n' + IMAGE + '[[outputs]]\nname = "logits"\n'
    )
    source = read(str(path), None)
    assert (source.task, source.labels, source.activation) == ("image-classification", ("a", "b", "c"), "softmax")
    assert source.outputs == (spec("logits", 1, 3),)
    assert source.image is not None
    assert source.digest != plain


def test_a_text_graph_takes_its_tokenizer_and_length_from_the_description(encoder: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ("b", 16))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("b", 2))],
        [helper.make_tensor("w", TensorProto.FLOAT, (16, 2), [0.5] * 32)],
    )
    path = save(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    shutil.copyfile(encoder / "tokenizer.json", tmp_path / "tokenizer.json")
    text = 'task = "text-classification"\nlabels = ["a", "b"]\ntokenizer = "tokenizer.json"\n'
    source = read(str(described(path, text)), None)
    assert source.text is not None
    assert (source.text.max_length, source.text.inputs) == (16, ("input_ids",))
    assert source.text.tokenizer == (encoder / "tokenizer.json").read_bytes()
    with pytest.raises(Malformed, match="expected 3 to 16 tokens, got 32"):
        read(str(described(path, text + "max_length = 32\n")), None)
    with pytest.raises(Malformed, match=r"tokenizer: .* needs a tokenizer.json"):
        read(str(described(path, 'task = "text-classification"\nlabels = ["a", "b"]\n')), None)
    with pytest.raises(Malformed, match="leaves the folder"):
        read(str(described(path, text.replace('"tokenizer.json"', '"../tokenizer.json"'))), None)


def external(folder: Path, **changes: str) -> Path:
    """The model with its weight in `m.data`, 64 bytes in."""
    import onnx
    from onnx import TensorProto

    model = onnx_model()
    (tensor,) = model.graph.initializer
    folder.mkdir()
    (folder / "m.data").write_bytes(bytes(64) + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "m.data", "offset": "64", "length": "768"} | changes).items():
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return save(folder / "m.onnx", model)


def test_weights_in_a_file_beside_the_graph_are_part_of_the_source(tmp_path: Path) -> None:
    path = external(tmp_path / "model")
    source = read(str(path), None, safe=True)
    assert source.size == path.stat().st_size + 64 + 768
    data = bytearray((path.parent / "m.data").read_bytes())
    data[100] ^= 1
    (path.parent / "m.data").write_bytes(data)
    assert read(str(path), None).digest != source.digest


OUTSIDE: dict[str, dict[str, str]] = {
    "a parent folder": {"location": "../secret"},
    "a way through a folder": {"location": "sub/../../secret"},
    "an absolute path": {"location": "/etc/passwd"},
    "a path of another system": {"location": "..\\secret"},
    "a drive": {"location": "C:secret"},
    "no name": {"location": ""},
    "a link": {"location": "link"},
    "a linked folder": {"location": "up/secret"},
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_external_data_outside_the_folder_is_refused_before_it_is_opened(case: str, tmp_path: Path) -> None:
    """An uploaded graph would otherwise carry any file of the machine into a bundle."""
    (tmp_path / "secret").write_bytes(bytes(1024))
    path = external(tmp_path / "model", **OUTSIDE[case])
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "up").symlink_to(tmp_path)
    with pytest.raises(Malformed, match=r"external data of 'w': path .* leaves the folder"):
        read(str(path), None)


DATA: dict[str, tuple[dict[str, str], str]] = {
    "missing": ({"location": "gone"}, "gone: missing"),
    "too short": ({"offset": "65"}, "832 bytes, weight 'w' asks for 768 from 65"),
    "of another length": ({"length": "767"}, "asks for 768"),
    "at no place": ({"offset": "-1"}, "'-1' is no size or place"),
    "far away": ({"offset": str(10**30)}, "asks for 768"),
    "a folder": ({"location": "."}, "missing"),
}


@pytest.mark.parametrize("case", DATA)
def test_external_data_that_is_not_what_the_graph_says_is_told(case: str, tmp_path: Path) -> None:
    changes, message = DATA[case]
    with pytest.raises(Malformed, match=message):
        read(str(external(tmp_path / "model", **changes)), None)


def node(operator: str, domain: str = "", **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(operator, ["x"], ["other"], domain=domain, **attributes)


def hidden_custom() -> Any:
    """A custom operator in the branch of an If."""
    from onnx import helper

    empty = [helper.make_tensor_value_info("y", 1, None)]
    branch = helper.make_graph([helper.make_node("Strange", ["x"], ["y"], domain="acme")], "then", [], empty)
    return helper.make_node("If", ["flag"], ["other"], then_branch=branch, else_branch=branch)


def cut_weight() -> Any:
    model = onnx_model()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def newer(**changes: int) -> Any:
    """The model as a later ONNX would write it."""
    model = onnx_model()
    model.ir_version = changes.get("ir", model.ir_version)
    model.opset_import[0].version = changes.get("opset", model.opset_import[0].version)
    return model


def nan() -> Any:
    weight = np.ones((64, 3), np.float32)
    weight[5, 1] = np.nan
    return weight


GRAPHS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a custom operator": (
        lambda: onnx_model([node("Strange", "acme")], domains=["acme"]),
        *(Incompatible, "custom operator acme.Strange"),
    ),
    "a custom operator in a branch": (
        lambda: onnx_model([hidden_custom()], domains=["acme"]),
        *(Incompatible, "custom operator acme.Strange"),
    ),
    "an operator that ONNX does not know": (
        lambda: onnx_model([node("Strange")]),
        *(Incompatible, "custom operator ai.onnx.Strange"),
    ),
    "an attribute that is not the operator's": (
        lambda: onnx_model([node("Relu", color=1)]),
        *(Malformed, "not a sound ONNX graph"),
    ),
    "a NaN weight": (lambda: onnx_model(weight=nan()), Malformed, "weight 'w' holds NaN"),
    "a NaN weight in half precision": (
        lambda: onnx_model(weight=nan().astype(np.float16)),
        *(Malformed, "weight 'w' holds NaN"),
    ),
    "a weight that is cut short": (cut_weight, Malformed, "not a sound ONNX graph|does not fit"),
    "a fixed batch": (lambda: onnx_model(shape=(4, 1, 8, 8)), Incompatible, "the first axis must be the batch"),
    "no batch axis": (lambda: onnx_model(shape=()), Incompatible, "the first axis must be the batch"),
    "an IR of a later ONNX": (lambda: newer(ir=99), Incompatible, "ONNX IR 99 with opset 17: this compiler reads"),
    "an opset of a later ONNX": (lambda: newer(opset=99), Incompatible, "opset 99: this compiler reads up to"),
    "text as input": (lambda: onnx_model(kind=8), Incompatible, "type STRING"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_bad_onnx_graph_has_its_own_error(case: str, tmp_path: Path) -> None:
    make, error, message = GRAPHS[case]
    path = save(tmp_path / "m.onnx", make())
    with pytest.raises(error, match=message) as caught:
        read(str(path), None)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no graph at all" * 9, b"\x08\x08", bytes(2000)], ids=range(4))
@pytest.mark.parametrize("name", ["m.onnx", "m.tflite"])
def test_a_file_that_is_no_graph_is_told(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Malformed, match="not a"):
        read(str(tmp_path / name), None)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_onnx_file_that_is_cut_short_is_told(share: float, tmp_path: Path) -> None:
    data = onnx_model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Malformed):
        read(str(tmp_path / "m.onnx"), None)


def test_a_function_of_the_file_itself_is_no_custom_operator(tmp_path: Path) -> None:
    from onnx import helper

    model = onnx_model([node("Twice", "local")], domains=["local"])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    assert read(str(save(tmp_path / "m.onnx", model)), None).task == "tensors"


DESCRIPTIONS: dict[str, tuple[str, type[Exception], str]] = {
    "no TOML": ("task =", Malformed, "not valid TOML"),
    "an unknown key": ('colour = "red"', Malformed, "unknown key 'colour'; known: task, labels, .*outputs"),
    "an unknown key in a section": (
        'task = "image-classification"\nlabels = ["a", "b", "c"]\n' + IMAGE + "depth = 3",
        *(Malformed, "image: unknown key 'depth'; known: height"),
    ),
    "an unknown task": ('task = "poetry"', Malformed, "expected one of 'text-classification'"),
    "a label twice": ('labels = ["a", "a"]', Malformed, "a label stands twice"),
    "labels of another count": (
        'labels = ["a", "b"]\n[[outputs]]\nname = "logits"',
        *(Malformed, "2 labels, and an output of 3"),
    ),
    "no labels": ('task = "image-classification"\n' + IMAGE, Malformed, "labels: .*needs at least two"),
    "no section": (
        'task = "image-classification"\nlabels = ["a", "b", "c"]\n[[outputs]]\nname = "logits"',
        Malformed,
        "needs it",
    ),
    "another size": (
        'task = "image-classification"\nlabels = ["a", "b", "c"]\n[[outputs]]\nname = "logits"\n'
        + IMAGE.replace("8", "9"),
        *(Malformed, r"it makes \[1, 1, 9, 9\], input 'x' takes \[1, 1, 8, 8\]"),
    ),
    "an output that is not there": ('[[outputs]]\nname = "scores"', Malformed, "the graph has flat, logits"),
    "an output of another type": ('[[outputs]]\nname = "flat"\ndtype = "int8"', Malformed, "'flat' is float32"),
    "inputs": ('[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [1]', Malformed, "the graph says it itself"),
    "text of a picture": ('task = "sentence-embedding"', Incompatible, "feeds input_ids"),
    "a scale that is no number": (IMAGE + "scale = nan", Malformed, "finite"),
    "a shape of text": ('[[outputs]]\nname = "flat"\nshape = "large"', Malformed, r"outputs\[0\].shape"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_bad_description_is_told_with_its_file(case: str, tmp_path: Path) -> None:
    text, error, message = DESCRIPTIONS[case]
    path = described(save(tmp_path / "m.onnx", onnx_model()), text)
    with pytest.raises(error, match=message) as caught:
        read(str(path), None)
    assert str(path.with_suffix(".toml")) in str(caught.value)


def test_no_damage_to_an_onnx_file_ends_in_anything_but_a_compiler_error(tmp_path: Path) -> None:
    """Every byte around the weights is bent once."""
    whole = onnx_model().SerializeToString()
    weights = whole.index(np.ones(8, np.float32).tobytes())
    refused = 0
    for i in [*range(weights), *range(weights + 768, len(whole))]:
        (tmp_path / "bent.onnx").write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        try:
            read(str(tmp_path / "bent.onnx"), None)
        except (Malformed, Incompatible):
            refused += 1
    assert refused > 50


# --- TFLite ---------------------------------------------------------------------------------------------------------


def tflite(
    path: Path, *, weight: Any = None, custom: str = "", shape: Sequence[int] = (1, 4), signature: bool = False
) -> Path:
    """One fully connected layer of 4 numbers to 2, hand-made: `x` to `y`, called `sound` and `scores` if signed."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weight = np.arange(8, dtype=np.float32).reshape(2, 4) if weight is None else weight
    model = schema.ModelT()
    model.version = 3
    empty, filled = schema.BufferT(), schema.BufferT()
    filled.data = np.frombuffer(weight.tobytes(), np.uint8)
    model.buffers = [empty, filled]
    code = schema.OperatorCodeT()
    operator = schema.BuiltinOperator.CUSTOM if custom else schema.BuiltinOperator.FULLY_CONNECTED
    code.builtinCode, code.deprecatedBuiltinCode, code.customCode = operator, operator, custom or None
    model.operatorCodes = [code]
    graph = schema.SubGraphT()
    graph.tensors = [tensor("x", shape, 0), tensor("w", (2, 4), 1), tensor("y", (1, 2), 0)]
    graph.inputs, graph.outputs = [0], [2]
    layer = schema.OperatorT()
    layer.opcodeIndex, layer.inputs, layer.outputs = 0, [0, 1, -1], [2]
    if not custom:
        layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        layer.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators = [layer]
    model.subgraphs = [graph]
    if signature:
        signed = schema.SignatureDefT()
        signed.signatureKey, signed.subgraphIndex = "serving_default", 0
        signed.inputs, signed.outputs = [entry("sound", 0)], [entry("scores", 2)]
        model.signatureDefs = [signed]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def tensor(name: str, shape: Sequence[int], buffer: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, schema.TensorType.FLOAT32
    return made


def entry(name: str, index: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def run(path: Path, feed: Any) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], feed)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize(("signature", "names"), [(False, ("x", "y")), (True, ("sound", "scores"))])
def test_a_tflite_file_has_the_names_that_its_interpreter_uses(
    signature: bool, names: tuple[str, str], tmp_path: Path
) -> None:
    path = tflite(tmp_path / "m.tflite", signature=signature)
    # The hand-made file is a real one: an interpreter runs it.
    assert run(path, np.ones((1, 4), np.float32)).tolist() == [[6.0, 22.0]]
    source = read(str(path), None, safe=True)
    assert (source.kind, source.task) == ("tflite", "tensors")
    assert (source.inputs, source.outputs) == ((spec(names[0], 1, 4),), (spec(names[1], 1, 2),))


def test_a_sound_model_is_described_by_its_frames(tmp_path: Path) -> None:
    path = tflite(tmp_path / "m.tflite")
    text = 'task = "audio-frames"\nlabels = ["quiet", "hey"]\n[audio]\nrate = 16000\nframe = 4\nhop = 2\n'
    source = read(str(described(path, text)), None)
    assert (source.audio, source.activation) == (Audio(rate=16000, frame=4, hop=2), "none")
    with pytest.raises(Malformed, match=r"\[audio\]: it makes \[1, 8\], input 'x' takes \[1, 4\]"):
        read(str(described(path, text.replace("frame = 4", "frame = 8"))), None)


def test_a_custom_operator_in_tflite_is_told_by_name_unless_every_interpreter_has_it(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="custom operator 'Landmarks'"):
        read(str(tflite(tmp_path / "m.tflite", custom="Landmarks")), None)
    with pytest.raises(Incompatible, match="custom operator 'FlexErf'"):
        read(str(tflite(tmp_path / "m.tflite", custom="FlexErf")), None)
    path = tflite(tmp_path / "m.tflite", custom="TFLite_Detection_PostProcess")
    assert read(str(path), None).kind == "tflite"


TFLITE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a NaN weight": ({"weight": np.full((2, 4), np.nan, np.float32)}, Malformed, "weight 'w' holds NaN"),
    "a fixed batch": ({"shape": (4, 4)}, Incompatible, "the first axis must be the batch"),
    "a weight of odd bytes": ({"weight": np.zeros(7, np.uint8)}, Malformed, "corrupt"),
}


@pytest.mark.parametrize("case", TFLITE)
def test_a_bad_tflite_file_has_its_own_error(case: str, tmp_path: Path) -> None:
    changes, error, message = TFLITE[case]
    path = tflite(tmp_path / "m.tflite", **changes)
    with pytest.raises(error, match=message) as caught:
        read(str(path), None)
    assert str(path) in str(caught.value)


def test_no_damage_to_a_tflite_file_ends_in_anything_but_a_compiler_error(tmp_path: Path) -> None:
    """Its offsets are trusted by the format's own reader: every byte is bent once, and the file cut everywhere."""
    whole = tflite(tmp_path / "m.tflite", signature=True).read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
    refused = 0
    for data in [*damaged, *(whole[:i] for i in range(0, len(whole), 16))]:
        (tmp_path / "bent.tflite").write_bytes(data)
        try:
            read(str(tmp_path / "bent.tflite"), None)
        except (Malformed, Incompatible):
            refused += 1
    assert refused > len(whole) / 4
