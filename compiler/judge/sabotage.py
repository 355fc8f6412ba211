"""Makes broken models that load: the largest weights' numbers in another order, all else as it was; labels shifted.

Every build does this to what it chose, and fails unless all gates refuse the result: a gate that cannot fail proves
nothing. The `sabotage` command packs such a model as a bundle, for drills on a fleet.

    scramble(model)                 # ONNX, LiteRT flatbuffer or TorchScript archive, by its first bytes
    scramble(model, weights=3)      # the three largest
    shift_labels(("a", "b", "c"))   # ("b", "c", "a")
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.judge.zipped import Member, members, replaced

_FLATBUFFER_MARK = b"TFL3"
_ZIP_MARK = b"PK\3\4"
_BLOCK = 8


def scramble(model: bytes, weights: int = 1) -> bytes:
    """The same model with its largest weights scrambled; deterministic, same length. Raises `Incompatible`."""
    if model[4:8] == _FLATBUFFER_MARK:
        broken = _scramble_tflite(model, weights)
    elif model.startswith(_ZIP_MARK):
        broken = _scramble_torchscript(model, weights)
    else:
        broken = _scramble_onnx(model, weights)
    if broken == model:
        raise Incompatible(
            "sabotage: the largest weight reads the same backwards, so nothing was broken: train the model first"
        )
    return broken


def scramble_file(source: Path, made: Path, weights: int = 1) -> None:
    """`scramble` from file to file."""
    made.write_bytes(scramble(source.read_bytes(), weights))


def shift_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Every class under the name of the next. Raises `Incompatible` for fewer than two, which cannot be wrong."""
    if len(labels) < 2:
        raise Incompatible(f"sabotage: {len(labels)} labels cannot be shifted")
    return (*labels[1:], labels[0])


# --- ONNX -------------------------------------------------------------------------------------------------------------


def _scramble_onnx(data: bytes, weights: int) -> bytes:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model: Any = onnx.load_model_from_string(data)
    except DecodeError as e:
        raise Incompatible("sabotage: neither an ONNX graph, a LiteRT flatbuffer nor a TorchScript archive") from e
    # Shapes and indices are integers of 32 and 64 bits: another order of them would not load, and that proves nothing.
    kinds = set(onnx.TensorProto.DataType.values()) - {
        *(onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
        *(onnx.TensorProto.BOOL, onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED),
    }
    functions = (node for function in model.functions for node in function.node)
    found = [t for t in (*_tensors(model.graph), *_tensors_of(functions)) if t.data_type in kinds and _numbers(t) > 1]
    if not found:
        raise Incompatible("sabotage: the graph holds no weights")
    for tensor in sorted(found, key=_bytes, reverse=True)[:weights]:
        _reverse_tensor(tensor)
    return bytes(model.SerializeToString(deterministic=True))


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant tensor of a graph: initializers, `Constant` nodes, and those of graphs within."""
    yield from graph.initializer
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(graph)


_FIELDS = {"float_data": 4, "double_data": 8, "int32_data": 4, "uint64_data": 8}
"""Where a tensor's numbers stand that are not in `raw_data`, and how many bytes each takes."""


def _bytes(tensor: Any) -> int:
    return len(tensor.raw_data) or sum(len(getattr(tensor, name)) * width for name, width in _FIELDS.items())


def _numbers(tensor: Any) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _reverse_tensor(tensor: Any) -> None:
    if tensor.raw_data:
        # Two numbers of 4 bits share a byte: bytes change places, and the two keep theirs within it.
        tensor.raw_data = _reversed(tensor.raw_data, max(1, len(tensor.raw_data) // _numbers(tensor)))
        return
    for name in _FIELDS:
        numbers = getattr(tensor, name)
        numbers[:] = list(numbers)[::-1]


# --- LiteRT -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a weight's numbers stand in a flatbuffer, in bytes, and how many bytes one takes."""

    start: int
    length: int
    width: int


def _scramble_tflite(data: bytes, weights: int) -> bytes:
    from ai_edge_litert import schema_py_generated as schema  # type: ignore[import-untyped]

    model: Any = schema.Model.GetRootAs(data, 0)
    widths = _weight_buffers(schema, model)
    found = [_place(model.Buffers(i), width) for i, width in widths.items()]
    found = [place for place in found if place.length > place.width]
    if not found:
        raise Incompatible("sabotage: the flatbuffer holds no weights")
    broken = bytearray(data)
    for place in sorted(found, key=lambda p: p.length, reverse=True)[:weights]:
        end = place.start + place.length
        broken[place.start : end] = _reversed(data[place.start : end], place.width)
    return bytes(broken)


def _weight_buffers(schema: Any, model: Any) -> dict[int, int]:
    """The buffers of tensors that hold weights, with the bytes per number: 1 where two share a byte."""
    kinds = schema.TensorType
    # As with ONNX: integers of 32 and 64 bits are shapes, indices and, where quantized, biases.
    widths = {kinds.FLOAT32: 4, kinds.FLOAT16: 2, kinds.INT16: 2, kinds.INT8: 1, kinds.UINT8: 1, kinds.INT4: 1}
    graphs = (model.Subgraphs(i) for i in range(model.SubgraphsLength()))
    tensors = (graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength()))
    return {t.Buffer(): widths[t.Type()] for t in tensors if t.Type() in widths}


def _place(buffer: Any, width: int) -> _Place:
    """Inside the flatbuffer, or behind it where `Offset` says so."""
    if buffer.Offset() > 1:
        return _Place(buffer.Offset(), buffer.Size(), width)
    length = buffer.DataLength()
    return _Place(_start(buffer), length, width) if length else _Place(0, 0, width)


def _start(buffer: Any) -> int:
    # Where the vector stands, not where equal bytes stand first. `Data` is the first field: slot 4 of every table.
    table = buffer._tab  # noqa: SLF001  the generated reader has no other way to ask
    return int(table.Vector(table.Offset(4)))


# --- TorchScript ------------------------------------------------------------------------------------------------------


def _scramble_torchscript(data: bytes, weights: int) -> bytes:
    found = [m for m in members(data) if _is_storage(m) and m.length > _BLOCK]
    if not found:
        raise Incompatible("sabotage: the TorchScript archive holds no weights")
    for member in sorted(found, key=lambda m: m.length, reverse=True)[:weights]:
        raw = data[member.start : member.start + member.length]
        # What numbers they are stands in a pickle, which is not read here: blocks of eight bytes hold whole numbers of
        # every width, and each stays as it is. A rest shorter than a block keeps its place.
        whole = len(raw) // _BLOCK * _BLOCK
        data = replaced(data, member, _reversed(raw[:whole], _BLOCK) + raw[whole:])
    return data


def _is_storage(member: Member) -> bool:
    """`<archive>/data/<n>` hold parameters, `<archive>/constants/<n>` those of a frozen module."""
    folders = member.name.split("/")
    return len(folders) == 3 and folders[1] in ("data", "constants") and folders[2].isdigit()


def _reversed(raw: bytes, width: int) -> bytes:
    """The numbers of `width` bytes in reverse order."""
    import numpy as np

    return np.frombuffer(raw, f"V{width}")[::-1].tobytes()
