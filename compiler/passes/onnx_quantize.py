"""Passes that make an ONNX graph smaller without looking at data: fp16, dynamic int8, weights in 8 or 4 bits."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from compiler.errors import Incompatible
from compiler.passes import onnx_file
from compiler.passes.job import PassJob
from compiler.passes.onnx_groups import kept, weighed

BLOCK = 32
"""Weights in four bits that share a scale."""
_FLOAT = 1
"""`onnx.TensorProto.FLOAT`."""
_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
    "GatherBlockQuantized",
)


def fp16(job: PassJob) -> None:
    """Weights and arithmetic in half precision; inputs and outputs keep their types."""
    from onnxruntime.quantization.onnx_model import ONNXModel  # type: ignore[import-untyped]
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    model = onnx_file.load(job.input)
    with warnings.catch_warnings(), onnx_file.refusals("graph: no way to fp16"):
        # It warns of each weight that becomes 0 or the largest number; accuracy is measured later.
        warnings.simplefilter("ignore")
        half = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
        half.topological_sort()  # it appends its casts at the end
    onnx_file.finish(half.model, job)


def int8_dynamic(job: PassJob) -> None:
    """Weights in int8 per channel, activations quantized as they come.

    Seven bits by default (`reduce_range`): processors without VNNI add two products in 16 bits, which saturates at
    eight.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    model = to_quantize(job)
    stay = left_out(model, job)
    with onnx_file.refusals("graph: no way to dynamic int8"):
        quantize_dynamic(
            model,
            str(job.output),
            op_types_to_quantize=["MatMul", "LSTM"],
            per_channel=True,
            reduce_range=reduced(job),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=stay,
            extra_options={"DefaultTensorType": _FLOAT},
        )
    made = onnx_file.load(job.output)
    shrink_embeddings(made, stay)
    finish_quantized(made, job)


def int8_weights(job: PassJob) -> None:
    """Weights in int8 with a scale for each channel; arithmetic stays fp32.

    In ONNX's own operators, which ONNX Runtime folds when it loads the graph: a quarter of the file at the speed of
    fp32 on every processor. Its operator for weights in blocks of eight bits (MatMulNBits) was measured to be no faster
    on x86-64 at equal accuracy, and has kernels for few processors.
    """
    model = to_quantize(job)
    stay = left_out(model, job)
    _shrink_weights(model, stay)
    shrink_embeddings(model, stay)
    finish_quantized(model, job)


def int4_weights(job: PassJob) -> None:
    """Weights of the matrix products in int4 blocks, of the embeddings in int8; arithmetic stays fp32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = to_quantize(job)
    stay = left_out(model, job)
    with onnx_file.refusals("graph: no way to weights of 4 bits"):
        ONNXModel(model).replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=BLOCK, is_symmetric=False, nodes_to_exclude=stay)
        quantizer.process()
    made = quantizer.model.model
    shrink_embeddings(made, stay)
    finish_quantized(made, job)


def to_quantize(job: PassJob) -> Any:
    """The graph before. Raises `Incompatible` when nothing in it can be quantized, or it is already."""
    model = onnx_file.load(job.input)
    already = sorted(
        {n.op_type for n in model.graph.node if n.op_type in _QUANTIZED or n.op_type.startswith("QLinear")}
    )
    if already:
        raise Incompatible(f"graph: it is quantized already ({', '.join(already)}): start from the float model")
    if not weighed(model):
        raise Incompatible("graph: no matrix of float32 weights to quantize")
    return model


def reduced(job: PassJob) -> bool:
    """Whether weights get seven bits."""
    return bool(job.parameters.get("reduce_range", True))


def left_out(model: Any, job: PassJob) -> list[str]:
    """Names of the nodes that stay float."""
    names = kept(model, job.parameters.get("keep_float", []))
    # ONNX Runtime's quantizers first make a Gemm a product and a sum, under new names.
    return [*names, *(f"{name}_MatMul" for name in names)]


def finish_quantized(model: Any, job: PassJob) -> None:
    """Write what a quantizer made. Raises `Incompatible` when it changed nothing, and said nothing."""
    from onnx import TensorProto

    small = (TensorProto.INT8, TensorProto.UINT8)
    observed = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if not observed and not any(t.data_type in small and len(t.dims) > 1 for t in model.graph.initializer):
        raise Incompatible("graph: it has none of the weights that this precision quantizes, or all are kept float")
    onnx_file.finish(model, job)


def _shrink_weights(model: Any, stay: Sequence[str]) -> None:
    """Weights of products become int8 times a scale for each channel."""
    from onnx import helper, numpy_helper

    weights = {t.name: t for t in model.graph.initializer}
    heavy = {n.name: n for n in weighed(model) if n.op_type != "Gather" and n.name not in stay}
    small: set[str] = set()
    made: list[Any] = []
    for node in model.graph.node:
        name = node.input[1] if node.name in heavy else ""
        if name in weights and len(weights[name].dims) > 1 and name not in small:
            values, scales = _channels(numpy_helper.to_array(weights[name]), _channel_axis(node))
            made += [
                helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], name=f"{name}_float", to=_FLOAT),
                helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name], name=f"{name}_whole"),
            ]
            _replace(model, weights[name], values, scales)
            small.add(name)
        made.append(node)
    del model.graph.node[:]
    model.graph.node.extend(made)


def shrink_embeddings(model: Any, stay: Sequence[str]) -> None:
    """Tables of weights that are looked up become int8 with a scale for each row.

    ONNX Runtime's own quantizer has one scale for the whole table, and loses by it.
    """
    from onnx import numpy_helper

    tables = {t.name: t for t in model.graph.initializer if t.data_type == _FLOAT and len(t.dims) == 2}
    lookups = [n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in tables and not _axis(n)]
    chosen = {n.name: n.input[0] for n in lookups if n.name not in stay}
    others = {name for n in model.graph.node if n.name not in chosen for name in n.input}
    made: list[Any] = []
    for node in model.graph.node:
        made += _lookup(node) if node.name in chosen and node.input[0] not in others else [node]
    del model.graph.node[:]
    model.graph.node.extend(made)
    for name in dict.fromkeys(n for n in chosen.values() if n not in others):
        _replace(model, tables[name], *_channels(numpy_helper.to_array(tables[name]), 0))


def _axis(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)


def _channel_axis(node: Any) -> int:
    """The axis of a product's weights along which its outputs lie."""
    if node.op_type == "Gemm":
        return 0 if next((a.i for a in node.attribute if a.name == "transB"), 0) else 1
    return {"Conv": 0, "MatMul": -1}.get(node.op_type, 1)


def _channels(values: Any, axis: int) -> tuple[Any, Any]:
    """int8 and float32 whose product is `values`, as near as 127 steps come; one scale for each place of `axis`."""
    import numpy as np

    rest = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    scales = np.maximum(np.abs(values).max(axis=rest, keepdims=True), 1e-9) / np.float32(127)
    return np.rint(values / scales).astype(np.int8), scales.astype(np.float32)


def _replace(model: Any, weight: Any, values: Any, scales: Any) -> None:
    from onnx import numpy_helper

    name = weight.name
    model.graph.initializer.remove(weight)
    model.graph.initializer.extend(
        [numpy_helper.from_array(values, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scale")]
    )


def _lookup(node: Any) -> list[Any]:
    """A look-up in an int8 table: the rows, times their scales."""
    from onnx import helper

    table, ids, out = node.input[0], node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [f"{table}_int8", ids], [f"{out}_int8"], name=f"{node.name}_int8"),
        helper.make_node("Gather", [f"{table}_scale", ids], [f"{out}_scale"], name=f"{node.name}_scale"),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_rows"], name=f"{node.name}_rows", to=_FLOAT),
        helper.make_node("Mul", [f"{out}_rows", f"{out}_scale"], [out], name=node.name),
    ]
