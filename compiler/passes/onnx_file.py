"""ONNX files: read, finish for the target, run.

No graph leaves with a path, a stack trace or kernels chosen for this machine, nor with an operator set that its runtime
does not read; the same graph gives the same bytes.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.errors import CompilerError, Incompatible, Malformed
from compiler.passes.job import PassJob
from wire.processing import Arrays, Graph

DEFAULT_DOMAINS = ("", "ai.onnx")
DOMAINS = (*DEFAULT_DOMAINS, "ai.onnx.ml", "com.microsoft")
"""Whose operators a build of ONNX Runtime has; it names kernels for one machine `com.microsoft.nchwc` and the like."""
LARGEST = 2**31 - 1
"""Bytes of one protobuf message."""
_NAMELESS = ("doc_string", "metadata_props")
"""Fields in which exporters leave stack traces and paths."""
_CPP = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+:\d+: \w+: Assertion `.*?` failed: |/onnxruntime_src/.*?\) (?=[A-Z])"
)
_TYPE_IR = {
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 9),
    **dict.fromkeys(("UINT4", "INT4"), 10),
    **dict.fromkeys(("FLOAT4E2M1",), 11),
    **dict.fromkeys(("FLOAT8E8M0",), 12),
    **dict.fromkeys(("UINT2", "INT2"), 13),
}
"""The IR that a type of numbers came with (onnx/onnx.proto, enum Version)."""


def load(path: Path) -> Any:
    """A graph with its external data inside. Raises `Malformed` when it is no ONNX file, or its data is missing."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError, ValueError) as e:
        raise Malformed(f"graph {path}: it cannot be read as ONNX: {first_line(e)}") from e


def opset(model: Any) -> int:
    """The version of ONNX's own operators. Raises `Malformed` for a graph that names none."""
    found = [o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS]
    if not found:
        raise Malformed("graph: it names no opset of ONNX: export it again")
    return int(max(found))


def finish(model: Any, job: PassJob) -> None:
    """Write `job.made`: opset and IR as the job's parameters ask, nothing that names the machine or the tool's run.

    Raises `Incompatible` for an operator, opset or type that the runtime does not have, and for a graph of 2 GB.
    """
    newest, ir = job.parameters.get("opset", opset(model)), job.parameters.get("ir", model.ir_version)
    _check_operators(model)
    if opset(model) > newest:
        raise Incompatible(f"graph: opset {opset(model)}, the runtime of the profile reads up to {newest}")
    _check_types(model, ir)
    model.ir_version = min(model.ir_version, ir)
    _forget(model)
    _name_nodes(model)
    used = {node.domain for node in nodes(model.graph)} | {""}
    for entry in [o for o in model.opset_import if o.domain not in used]:
        model.opset_import.remove(entry)
    if model.ByteSize() > LARGEST:
        raise Incompatible(f"graph: {model.ByteSize()} bytes, one ONNX file holds {LARGEST}")
    job.output.write_bytes(model.SerializeToString(deterministic=True))


def check(model: Any) -> None:
    """Raises `Incompatible` for what ONNX's own checker refuses, above all an operator that the opset does not have."""
    import onnx

    unknown = [n for n in nodes(model.graph) if n.domain in DEFAULT_DOMAINS and not _known(n.op_type, opset(model))]
    if unknown:
        raise Incompatible(f"graph: operator {unknown[0].op_type} is not part of opset {opset(model)}")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise Incompatible(f"graph: not sound for opset {opset(model)}: {first_line(e)}") from e


def session(path: Path) -> Graph:
    """A graph as a function, on one thread. Raises `Incompatible` when ONNX Runtime refuses it."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with refusals(f"graph {path.name}: ONNX Runtime refuses it"):
        opened: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [out.name for out in opened.get_outputs()]

    def run(arrays: Arrays) -> Mapping[str, Any]:
        with refusals(f"graph {path.name}: ONNX Runtime cannot run it"):
            return dict(zip(names, opened.run(names, dict(arrays)), strict=True))

    return run


def nodes(graph: Any) -> Iterator[Any]:
    """Every node, those of branches and loop bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes(inner)


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turns what a tool of ONNX refuses into `Incompatible`, and keeps its chatter down.

    Catches everything: the errors of these tools share no base below Exception.
    """
    logging.disable(logging.WARNING)  # they write a line for each node
    try:
        yield
    except (CompilerError, MemoryError, OSError):
        raise
    except Exception as e:
        raise Incompatible(f"{what}: {first_line(e)}") from e
    finally:
        logging.disable(logging.NOTSET)


def first_line(error: BaseException) -> str:
    """What a tool's error says, without its stack and the place in its C++ source."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _CPP.sub("", text)[:300]


def _known(operator: str, version: int) -> bool:
    from onnx import defs

    try:
        return not defs.get_schema(operator, version, "").deprecated
    except defs.SchemaError:
        return False


def _check_operators(model: Any) -> None:
    custom = sorted({f"{n.domain}::{n.op_type}" for n in nodes(model.graph) if n.domain not in DOMAINS})
    if custom:
        raise Incompatible(
            f"graph: custom operator {custom[0]} ({len(custom)} such): no runtime here has it; express it with ONNX's "
            "own operators"
        )


def _check_types(model: Any, ir: int) -> None:
    from onnx import TensorProto

    kinds = {t.data_type for t in model.graph.initializer}
    kinds |= {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    for kind in sorted(kinds):
        name = TensorProto.DataType.Name(kind)
        if _TYPE_IR.get(name, 0) > ir:
            raise Incompatible(
                f"graph: numbers of type {name} came with IR {_TYPE_IR[name]}, the runtime of the profile reads up to "
                f"IR {ir}"
            )


def _forget(message: Any) -> None:
    for name in _NAMELESS:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else (value,):
            _forget(inner)


def _name_nodes(model: Any) -> None:
    """Quantizers leave a node out by its name: give one to those without, and no two the same."""
    taken: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{i}"
        taken.add(node.name)
