"""A TFLite file, read by the format's own schema: tensors, operators, no NaN. No interpreter runs.

Inputs and outputs carry the names of the file's signature where it has one, else those of the tensors: what an
interpreter calls them.
"""

# ruff: noqa: PLC0415  the schema and numpy take a third of a second: other kinds of sources do not wait for them
from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from compiler.errors import Incompatible, Malformed, Unavailable
from compiler.sources import assemble
from compiler.sources.describe import Described
from compiler.sources.files import file_size, read_bytes
from compiler.sources.onnx_graph import batch_of_one
from compiler.sources.source import Source
from wire.pipeline import DataType, TensorSpec

BUILT_IN = ("AudioSpectrogram", "Convolution2DTransposeBias", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess")
"""Custom operators that LiteRT registers by itself. Whether another runtime does is seen when it runs the file."""
_TYPES: dict[str, DataType] = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "FLOAT64": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_FLOATS = {"FLOAT32": "<f4", "FLOAT16": "<f2", "FLOAT64": "<f8"}


class _Model(NamedTuple):
    """The parsed file with its bytes."""

    path: Path
    data: bytes
    root: Any


def read(path: Path, described: Described) -> Source:
    """Check and describe a file. Raises `Malformed` for a broken one, `Incompatible` for one that cannot serve."""
    size = file_size(path)
    data = read_bytes(path, "name a .tflite file")
    # flatbuffers verifies nothing: a broken offset shows as one of these errors, wherever it is followed first.
    try:
        model = _parse(path, data)
        _check_operators(model)
        _check_numbers(model)
        tensors = _tensors(model)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as e:
        raise Malformed(f"source {path}: a corrupt TFLite file: {e}: copy it again") from e
    return assemble.of_graph("tflite", path, described, tensors, [("model.tflite", path)], size)


def _parse(path: Path, data: bytes) -> _Model:
    try:
        from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]
    except ModuleNotFoundError as e:
        raise Unavailable(f"source {path}: reading TFLite needs ai-edge-litert: install shoal[litert]") from e

    if data[4:8] != b"TFL3":
        raise Malformed(f"source {path}: not a TFLite file: copy it again")
    root = schema.Model.GetRootAs(data, 0)
    if not root.SubgraphsLength() or not root.Subgraphs(0).OutputsLength():
        raise Malformed(f"source {path}: a TFLite file without a graph or output: copy it again")
    return _Model(path, data, root)


def _check_operators(model: _Model) -> None:
    """Raises `Incompatible` for a custom operator."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator  # type: ignore[import-untyped]

    for i in range(model.root.OperatorCodesLength()):
        code = model.root.OperatorCodes(i)
        # Old files use the first field alone, newer ones the second; the larger one counts.
        if max(code.DeprecatedBuiltinCode(), code.BuiltinCode()) != BuiltinOperator.CUSTOM:
            continue
        name = (code.CustomCode() or b"").decode("utf-8", "replace")
        if name not in BUILT_IN:
            raise Incompatible(
                f"source {model.path}: custom operator {name[:80]!r}: no runtime of a device knows it; convert the "
                "model with built-in operators"
            )


def _check_numbers(model: _Model) -> None:
    """Raises `Malformed` for buffers that the file does not hold, and for NaN among the weights."""
    import numpy as np

    for i in range(model.root.SubgraphsLength()):
        graph = model.root.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            data = _buffer(model, tensor.Buffer())
            kind = _FLOATS.get(_kind(tensor))
            if kind and data and bool(np.isnan(np.frombuffer(data, kind)).any()):
                raise Malformed(f"source {model.path}: weight {_name(tensor)!r} holds NaN: train or copy it again")


def _buffer(model: _Model, index: int) -> memoryview:
    if index >= model.root.BuffersLength():
        raise Malformed(f"source {model.path}: a tensor names buffer {index}, which is not there: copy it again")
    buffer = model.root.Buffers(index)
    # A file over 2 GB keeps its buffers behind the flatbuffer, at a place in the file; 0 and 1 mean that it does not.
    start, length = buffer.Offset(), buffer.Size()
    if start <= 1:
        length = buffer.DataLength()
        start = buffer._tab.Vector(buffer._tab.Offset(4)) if length else 0  # noqa: SLF001  the accessor copies bytes
    if start + length > len(model.data):
        raise Malformed(
            f"source {model.path}: {len(model.data)} bytes, a buffer ends at {start + length}: copy it again"
        )
    return memoryview(model.data)[start : start + length]


def _tensors(model: _Model) -> tuple[list[TensorSpec], list[TensorSpec]]:
    graph = model.root.Subgraphs(0)
    if not graph.InputsLength():
        raise Incompatible(f"source {model.path}: the graph takes no input")
    if model.root.SignatureDefsLength() > 1:
        raise Incompatible(f"source {model.path}: several signatures; convert one function of the model")
    if model.root.SignatureDefsLength() == 1:
        signature = model.root.SignatureDefs(0)
        graph = model.root.Subgraphs(signature.SubgraphIndex())
        named = [
            [(entry(i).Name(), graph.Tensors(entry(i).TensorIndex())) for i in range(length)]
            for entry, length in (
                (signature.Inputs, signature.InputsLength()),
                (signature.Outputs, signature.OutputsLength()),
            )
        ]
    else:
        taken = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
        given = [graph.Tensors(graph.Outputs(i)) for i in range(graph.OutputsLength())]
        named = [[(tensor.Name(), tensor) for tensor in tensors] for tensors in (taken, given)]
    inputs, outputs = ([_spec(tensor, name, model) for name, tensor in tensors] for tensors in named)
    return inputs, outputs


def _spec(tensor: Any, name: bytes | None, model: _Model) -> TensorSpec:
    plain = (name or b"").decode("utf-8", "replace")
    where = f"source {model.path}: tensor {plain[:80]!r}"
    if _kind(tensor) not in _TYPES:
        raise Incompatible(f"{where} is of type {_kind(tensor)}; supported: {', '.join(_TYPES.values())}")
    # The signature of the shape, where there is one, marks with -1 what may change.
    signed = tensor.ShapeSignatureLength() == tensor.ShapeLength() and tensor.ShapeLength() > 0
    axis = tensor.ShapeSignature if signed else tensor.Shape
    shape = tuple(int(axis(i)) if axis(i) > 0 else -1 for i in range(tensor.ShapeLength()))
    return TensorSpec(name=plain, dtype=_TYPES[_kind(tensor)], shape=batch_of_one(shape, where))


def _kind(tensor: Any) -> str:
    number = int(tensor.Type())
    return _type_names().get(number, f"number {number}")


@cache
def _type_names() -> Mapping[int, str]:
    from ai_edge_litert.schema_py_generated import TensorType

    return {value: name for name, value in vars(TensorType).items() if isinstance(value, int)}


def _name(tensor: Any) -> str:
    return (tensor.Name() or b"").decode("utf-8", "replace")[:80]
