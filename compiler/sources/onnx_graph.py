"""An ONNX file, checked before a runtime sees it: sizes, external data inside its folder, known operators, no NaN.

Weights may lie in files beside it (external data). Such a file is named by a relative path that stays inside the
folder, and holds what the graph says it holds.
"""

# ruff: noqa: PLC0415  onnx and numpy take a third of a second: other kinds of sources do not wait for them
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible, Malformed
from compiler.sources import assemble
from compiler.sources.describe import Described
from compiler.sources.files import check_size, file_size, inside
from compiler.sources.source import Source
from wire.pipeline import DataType, TensorSpec

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_CONTRIBUTED = ("com.microsoft",)
"""ONNX Runtime's own operators, of which onnx has no list: the runtime that serves says which it lacks."""
_TYPES: dict[str, DataType] = {
    "FLOAT": "float32",
    "FLOAT16": "float16",
    "DOUBLE": "float64",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def read(path: Path, described: Described) -> Source:
    """Check and describe a file. Raises `Malformed` for a broken one, `Incompatible` for one that cannot serve."""
    size = file_size(path)
    model = _parse(path)
    # A text that is no UTF-8 comes out of protobuf as bytes: it shows as one of these errors, where it is used first.
    try:
        _check_versions(model, path)
        external = _external(model, path)
        size += sum(file.stat().st_size for file in external.values())
        check_size(path, size)
        _check_operators(model, path)
        _check_graph(path)
        _check_numbers(model, path)
        tensors = _tensors(model, path)
    except (TypeError, ValueError) as e:
        raise Malformed(f"source {path}: a corrupt ONNX file: {_first_line(e)}: copy it again") from e
    files = [("model.onnx", path), *((f"data {name}", file) for name, file in sorted(external.items()))]
    return assemble.of_graph("onnx", path, described, tensors, files, size)


def _parse(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as e:
        raise Malformed(f"source {path}: not an ONNX file, or corrupt: copy it again") from e
    if not model.opset_import or not model.graph.output:
        raise Malformed(f"source {path}: not an ONNX file, or cut short: it has no opset or no output: copy it again")
    return model


def _check_versions(model: Any, path: Path) -> None:
    """Raises `Incompatible` for a file that is newer than the library that would check it."""
    import onnx

    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    known = onnx.defs.onnx_opset_version()
    if model.ir_version > onnx.IR_VERSION or opset > known:
        raise Incompatible(
            f"source {path}: ONNX IR {model.ir_version} with opset {opset}: this compiler reads up to IR "
            f"{onnx.IR_VERSION} with opset {known}: export it with an older opset"
        )


def _check_graph(path: Path) -> None:
    """Raises `Malformed` for a graph that breaks the rules of the format."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as e:
        raise Malformed(f"source {path}: not a sound ONNX graph: {_first_line(e)}: export it again") from e


def _check_operators(model: Any, path: Path) -> None:
    """Raises `Incompatible` for an operator that neither ONNX, nor ONNX Runtime, nor the file itself defines."""
    import onnx

    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        known = node.domain in _CONTRIBUTED or (node.domain, node.op_type) in own
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not known and not (node.domain in _STANDARD and onnx.defs.has(node.op_type, domain)):
            raise Incompatible(
                f"source {path}: custom operator {node.domain or 'ai.onnx'}.{node.op_type}: no runtime of a device "
                "knows it; export the model with standard operators"
            )


def _external(model: Any, path: Path) -> dict[str, Path]:
    """The files of external data by the name that the graph uses. Raises `Malformed`."""
    found: dict[str, Path] = {}
    for tensor in _stored(model):
        says = {entry.key: entry.value for entry in tensor.external_data}
        name = says.get("location", "")
        file = inside(path.parent, name, f"source {path}: external data of {tensor.name[:80]!r}")
        if not file.is_file():
            raise Malformed(f"source {file}: missing: external data of {path.name} lies beside it: copy both")
        start, length = (_number(says.get(key), tensor, path) for key in ("offset", "length"))
        expected = _bytes(tensor, path)
        if (length or expected) != expected or (start or 0) + expected > file.stat().st_size:
            raise Malformed(
                f"source {file}: {file.stat().st_size} bytes, weight {tensor.name[:80]!r} asks for {expected} from "
                f"{start or 0}: copy it again"
            )
        found[name] = file
    return found


def _number(text: str | None, tensor: Any, path: Path) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise Malformed(f"source {path}: external data of {tensor.name[:80]!r}: {text[:40]!r} is no size or place")
    return int(text)


def _bytes(tensor: Any, path: Path) -> int:
    """Bytes of a tensor's numbers, from type and dimensions alone."""
    from onnx.helper import tensor_dtype_to_np_dtype

    if any(size < 0 for size in tensor.dims):
        raise Malformed(f"source {path}: weight {tensor.name[:80]!r}: dimensions {list(tensor.dims)}")
    try:
        width = int(tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError as e:
        raise Malformed(f"source {path}: weight {tensor.name[:80]!r}: unknown type {tensor.data_type}") from e
    count = math.prod(int(size) for size in tensor.dims)
    return -(-count // 2) if tensor.data_type in _packed() else count * width


def _packed() -> tuple[int, ...]:
    """The types of which two numbers share a byte."""
    from onnx import TensorProto

    return (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)


def _check_numbers(model: Any, path: Path) -> None:
    """Raises `Malformed` for NaN among the weights. Infinity is let through: attention masks hold it."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for tensor in _weights(model):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            continue
        try:
            values = numpy_helper.to_array(tensor, str(path.parent))
        except ValueError as e:
            raise Malformed(f"source {path}: weight {tensor.name[:80]!r} does not fit its shape: copy it again") from e
        if bool(np.isnan(values).any()):
            raise Malformed(f"source {path}: weight {tensor.name[:80]!r} holds NaN: train or copy it again")


def _tensors(model: Any, path: Path) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs without the initializers, and outputs; batch axis 1."""
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constant]
    if not inputs:
        raise Incompatible(f"source {path}: the graph takes no input")
    return [_spec(value, path) for value in inputs], [_spec(value, path) for value in model.graph.output]


def _spec(value: Any, path: Path) -> TensorSpec:
    import onnx

    where = f"source {path}: tensor {value.name[:80]!r}"
    if not value.type.HasField("tensor_type"):
        raise Incompatible(f"{where} is no tensor (a sequence, map or optional); export a graph of tensors")
    kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if kind not in _TYPES:
        raise Incompatible(f"{where} is of type {kind}; supported: {', '.join(_TYPES.values())}")
    if not value.type.tensor_type.HasField("shape"):
        # Only an output may leave its rank to the run.
        return TensorSpec(name=value.name, dtype=_TYPES[kind], shape=(1, -1))
    shape = tuple(_axis(dim) for dim in value.type.tensor_type.shape.dim)
    return TensorSpec(name=value.name, dtype=_TYPES[kind], shape=batch_of_one(shape, where))


def _axis(dim: Any) -> int:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else -1


def batch_of_one(shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    """A shape with a batch axis of 1. Raises `Incompatible` when the graph fixes another, or has none."""
    if not shape or shape[0] not in (1, -1):
        raise Incompatible(
            f"{where}: shape {list(shape)}: the first axis must be the batch, of 1 or of any size: export it so"
        )
    return (1, *shape[1:])


def _weights(model: Any) -> Iterator[Any]:
    """Every tensor that the file holds: initializers and constants, in all graphs."""
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _stored(model: Any) -> Iterator[Any]:
    from onnx import TensorProto

    return (tensor for tensor in _weights(model) if tensor.data_location == TensorProto.EXTERNAL)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for graph in _inner(node):
                yield from (inner for each in _graphs(graph) for inner in each.node)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (the branches of an If, the body of a Loop)."""
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
