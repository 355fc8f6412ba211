"""Where the operators of a model run: which are left to float32, or to the plain kernels of a runtime.

Each function gives the operators as (name, number in the graph), of the first signature where a file has several.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.passes import litert_file, onnx_file
from wire.bundle import Precision

Placed = frozenset[tuple[str, int]]
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedGemm", "FusedConv", "Attention"})
"""Operators of ONNX, and of ONNX Runtime's own, that carry a model's arithmetic."""


def outside_xnnpack(model: Path) -> Placed:
    """Operators of a flatbuffer that run on LiteRT's plain kernels."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    with onnx_file.refusals(f"variant {model.name}: LiteRT refuses it"):
        # Without fusion each operator that the delegate takes is replaced alone, by a node with the same outputs.
        interpreter: Any = Interpreter(
            model_path=str(model), num_threads=1, experimental_disable_delegate_node_fusion=True
        )
        interpreter.allocate_tensors()
        nodes = [(d["op_name"], set(map(int, d["outputs"]))) for d in interpreter._get_ops_details()]  # noqa: SLF001
    taken = {output for name, outputs in nodes if name == "DELEGATE" for output in outputs}
    return frozenset(
        (name, i) for i, (name, outputs) in enumerate(nodes) if name != "DELEGATE" and not outputs <= taken
    )


def float_in_flatbuffer(model: Path, precision: Precision) -> Placed:
    """Products of a flatbuffer whose second factor, the weights, reaches them as float32."""
    if precision == "fp32":
        return frozenset()
    read = litert_file.read(model)
    graph = read.subgraphs[0]
    return frozenset(
        (name, i)
        for i, (name, operator) in enumerate(litert_file.operators(read, graph))
        if name in litert_file.PRODUCTS and litert_file.kind(graph, operator.inputs[1]) == "FLOAT32"
    )


def float_in_session(model: Path, precision: Precision) -> Placed:
    """Products in float32 of the graph that ONNX Runtime makes of a file for this machine."""
    if precision == "fp32":
        return frozenset()
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that such a file is for this machine alone
    with tempfile.TemporaryDirectory() as folder, onnx_file.refusals(f"variant {model.name}: ONNX Runtime refuses it"):
        options.optimized_model_filepath = str(Path(folder, "running.onnx"))
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx_file.load(Path(options.optimized_model_filepath)).graph
    return frozenset(_float_products(graph))


def float_in_onnx(model: Path, precision: Precision) -> Placed:
    """Products of a graph with Q/DQ pairs that none of them feeds: an engine leaves them in float."""
    if precision in ("fp32", "fp16"):
        return frozenset()
    graph = onnx_file.load(model).graph
    paired = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return frozenset(
        (node.op_type, i)
        for i, node in enumerate(graph.node)
        if node.op_type in _PRODUCTS and not set(node.input[:2]) <= paired
    )


def _float_products(graph: Any) -> Iterator[tuple[str, int]]:
    """Follows the types through the graph: an operator gives the first type of numbers with a point that it takes."""
    from onnx import TensorProto

    points = (TensorProto.FLOAT, TensorProto.FLOAT16)
    types = {t.name: t.data_type for t in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    for i, node in enumerate(graph.node):
        given = next((types[name] for name in node.input if types.get(name) in points), TensorProto.UNDEFINED)
        if node.op_type == "Cast":
            given = next(a.i for a in node.attribute if a.name == "to")
        elif node.op_type in _PRODUCTS and given == TensorProto.FLOAT:
            yield node.op_type, i
        types |= dict.fromkeys(node.output, given)
