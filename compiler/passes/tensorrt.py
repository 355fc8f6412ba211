"""ONNX graphs for TensorRT: what its parser takes, and nothing else. Engines are built on the device, for its GPU.

Inputs stay int64, as the tokenizer gives them: parsers before 10 read them as int32 themselves. Weights stay float,
those with QuantizeLinear beside them too, since older parsers take no int8 constants: it is the engine that gets small.
fp16 is the engine's choice as well; on TensorRT 8.2 the norms, Softmax and Pow of a transformer must stay fp32.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes import onnx_file
from compiler.passes.job import PassJob
from compiler.passes.onnx_groups import is_transformer
from compiler.passes.onnx_quantize import finish_quantized, to_quantize
from compiler.passes.onnx_static import PRODUCTS, quantize

JOINED = (*PRODUCTS, "Add", "AveragePool", "GlobalAveragePool")
"""What has int8 kernels in a convolutional network; other layers take the precision of their neighbours."""
FIRST = (8, 2)
"""The oldest parser whose operators are known here."""
_BROUGHT = {
    FIRST: (
        "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip "
        "Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout "
        "Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm "
        "GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If "
        "InstanceNormalization IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool "
        "MatMul Max MaxPool Mean Min Mul Neg NonMaxSuppression Not Or PRelu Pad Pow QuantizeLinear RNN RandomUniform "
        "RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round Scan ScatterElements ScatterND "
        "Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum "
        "Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Where"
    ),
    (8, 4): "HardSwish RandomNormal RandomNormalLike Reciprocal Shrink Xor",
    (8, 5): "GridSample MeanVarianceNormalization Mod NonZero OneHot RoiAlign Trilu",
    (8, 6): "GroupNormalization IsInf LayerNormalization",
    (9, 2): "CastLike Hardmax",
    (10, 0): "Gelu Mish",
    (10, 1): "DeformConv",
}
"""Operators by the version that brought them (docs/operators.md of onnx-tensorrt at each release)."""
OPERATORS = {since: frozenset(names.split()) for since, names in _BROUGHT.items()}
NEWEST_OPSET = {(8, 2): 13, (8, 4): 17, (9, 0): 19, (10, 0): 20}
"""By the version that raised it (the same)."""


def ready(job: PassJob) -> None:
    """The float graph, checked for the parser. Raises `Incompatible` that names what the parser does not take."""
    onnx_file.finish(onnx_file.load(job.input), job)
    check_tensorrt(job.output, _parser(job))


def int8_static(job: PassJob) -> None:
    """Symmetric int8 as the parser wants it: pairs of QuantizeLinear and DequantizeLinear with zero points of 0.

    Activations have one scale, weights one for each channel, biases stay float.
    """
    from onnxruntime.quantization import QuantType  # type: ignore[import-untyped]

    model = to_quantize(job)
    options = {"ActivationSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False}
    made = quantize(
        model,
        job,
        PRODUCTS if is_transformer(model) else JOINED,
        activation_type=QuantType.QInt8,
        reduce_range=False,
        extra_options=options,
    )
    finish_quantized(made, job)
    check_tensorrt(job.output, _parser(job))


def check_tensorrt(path: Path, parser: str) -> None:
    """Raises `Incompatible` for an operator, opset or zero point that the parser of this version does not take."""
    model = onnx_file.load(path)
    version = _version(parser)
    if version < FIRST:
        raise Incompatible(f"TensorRT {parser}: the oldest that this compiler knows is 8.2")
    newest = max(opset for since, opset in NEWEST_OPSET.items() if since <= version)
    if onnx_file.opset(model) > newest:
        raise Incompatible(f"graph: opset {onnx_file.opset(model)}, TensorRT {parser} reads up to {newest}")
    known = frozenset[str]().union(*(names for since, names in OPERATORS.items() if since <= version))
    strange = sorted({_title(n) for n in onnx_file.nodes(model.graph) if n.domain or n.op_type not in known})
    if strange:
        raise Incompatible(f"graph: TensorRT {parser} has no operator {', '.join(strange)}")
    _check_scales(model, parser)


def _check_scales(model: Any, parser: str) -> None:
    from onnx import numpy_helper

    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (values.get(name) for name in (*node.input[1:3], "")[:2])
        if (
            scale is None
            or zero is None
            or numpy_helper.to_array(zero).any()
            or (numpy_helper.to_array(scale) <= 0).any()
        ):
            raise Incompatible(
                f"graph: {node.op_type} {node.name}: TensorRT {parser} wants a constant scale above 0 and a zero point "
                "of 0"
            )


def _title(node: Any) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


def _parser(job: PassJob) -> str:
    """The version of the job, or the oldest one that reads its opset."""
    named = job.parameters.get("tensorrt")
    if named:
        return str(named)
    wanted = job.parameters.get("opset", max(NEWEST_OPSET.values()))
    return next((f"{a}.{b}" for (a, b), opset in NEWEST_OPSET.items() if opset >= wanted), "10.0")


def _version(text: str) -> tuple[int, int]:
    major, minor = (*text.split("."), "0")[:2]
    return int(major), int(minor)
