"""Makes a broken model that loads: the largest weight tensor's numbers in reverse order, all else as it was.

Every build does this to what it chose, and fails unless both gates refuse the result: a gate that cannot fail
proves nothing. The `sabotage` command packs such a model as a bundle, for drills on a fleet.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import Incompatible

_FLATBUFFER_MARK = b"TFL3"


def scramble(model: bytes) -> bytes:
    """The same model with one weight tensor scrambled; deterministic, same length. Raises `Incompatible`."""
    broken = _scramble_tflite(model) if model[4:8] == _FLATBUFFER_MARK else _scramble_onnx(model)
    if broken == model:
        raise Incompatible(
            "sabotage: the largest weight reads the same backwards, so nothing was broken: train the model first"
        )
    return broken


def scramble_file(source: Path, made: Path) -> None:
    """`scramble` from file to file."""
    made.write_bytes(scramble(source.read_bytes()))


def _scramble_onnx(data: bytes) -> bytes:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model: Any = onnx.load_model_from_string(data)
    except DecodeError as e:
        raise Incompatible("sabotage: neither an ONNX graph nor a LiteRT flatbuffer") from e
    if not model.graph.initializer:
        raise Incompatible("sabotage: the graph holds no weights")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    count = 1
    for size in weight.dims:
        count *= size
    weight.raw_data = _reversed(weight.raw_data, max(1, len(weight.raw_data) // count))
    return bytes(model.SerializeToString(deterministic=True))


def _scramble_tflite(data: bytes) -> bytes:
    from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

    model: Any = schema.Model.GetRootAs(data, 0)
    places = [_place(model.Buffers(i)) for i in range(model.BuffersLength())]
    largest = max(range(len(places)), key=lambda i: places[i][1])
    start, length = places[largest]
    width = _width(schema, model, largest)
    return data[:start] + _reversed(data[start : start + length], width) + data[start + length :]


def _place(buffer: Any) -> tuple[int, int]:
    """Start and length in bytes of a buffer: inside the flatbuffer, or behind it where `Offset` says so."""
    if buffer.Offset() > 1:
        return buffer.Offset(), buffer.Size()
    length = buffer.DataLength()
    return (_start(buffer), length) if length else (0, 0)


def _start(buffer: Any) -> int:
    # Where the vector stands, not where equal bytes stand first. `Data` is the first field: slot 4 of every table.
    table = buffer._tab  # noqa: SLF001  the generated reader has no other way to ask
    return int(table.Vector(table.Offset(4)))


def _width(schema: Any, model: Any, buffer: int) -> int:
    """Bytes per number of the tensor that uses a buffer; 1 when it is packed or unknown."""
    widths = {
        schema.TensorType.FLOAT32: 4,
        schema.TensorType.INT32: 4,
        schema.TensorType.FLOAT16: 2,
        schema.TensorType.INT64: 8,
    }
    graph = model.Subgraphs(0)
    tensors = (graph.Tensors(i) for i in range(graph.TensorsLength()))
    return next((widths.get(t.Type(), 1) for t in tensors if t.Buffer() == buffer), 1)


def _reversed(raw: bytes, width: int) -> bytes:
    """The numbers of `width` bytes in reverse order."""
    return np.frombuffer(raw, f"V{width}")[::-1].tobytes()
