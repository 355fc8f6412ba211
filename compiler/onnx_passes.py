"""Passes that make ONNX graphs for ONNX Runtime: export, constant folding, dynamic int8, int4 weights.

No graph leaves with a path, a stack trace or kernels chosen for this machine: ONNX Runtime's higher
optimisation levels write machine-specific nodes, so only its basic level runs here.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.runtime import onnxruntime
from compiler.work import Step, Target

OUTPUT = "logits"
INT4_BLOCK = 32
"""Weights that share a scale."""


def export(step: Step) -> None:
    """The fp32 graph, int64 `[batch, tokens]` inputs to float32 logits `[batch, classes]`. Raises `Incompatible`."""
    import torch

    module = step.work.module
    names = list(module.inputs)
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {OUTPUT: {0: "batch"}}
    # Two rows of eight tokens: a dimension of one would be folded into the graph.
    sample = (
        torch.ones(2, 8, dtype=torch.long),
        torch.ones(2, 8, dtype=torch.long),
        torch.zeros(2, 8, dtype=torch.long),
    )
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter on purpose: the newer one writes stack traces with paths into the graph.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                sample[: len(names)],
                str(step.made),
                dynamo=False,
                opset_version=step.target.opset,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_axes=axes,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as e:
            raise Incompatible(
                f"source {step.work.source.folder}: no ONNX graph for opset {step.target.opset}: {str(e)[:300]}"
            ) from e
    _finish(step.made, step.target)
    pipeline = step.work.pipeline(OUTPUT, tokens=None)
    step.work.check_equal(onnxruntime(step.made, pipeline), pipeline, "ONNX")


def prepare(step: Step) -> None:
    """Folds constants and infers shapes, so that the quantizers find every weight."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    quant_pre_process(str(step.given), str(step.made), skip_symbolic_shape=True)
    _finish(step.made, step.target)


def dynamic_int8(step: Step) -> None:
    """Weights in int8 per channel, activations quantized as they come.

    Seven bits (`reduce_range`): processors without VNNI add two products in 16 bits, which saturates at eight.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    quantize_dynamic(str(step.given), str(step.made), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    _finish(step.made, step.target)


def int4_weights(step: Step) -> None:
    """Weights of the matrix products in int4 blocks, of the embeddings in int8; arithmetic stays fp32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # type: ignore[import-untyped]

    quantizer = MatMulNBitsQuantizer(onnx.load(str(step.given)), bits=4, block_size=INT4_BLOCK, is_symmetric=False)
    quantizer.process()
    half = step.made.with_suffix(".int4")
    onnx.save(quantizer.model.model, str(half))
    quantize_dynamic(str(half), str(step.made), op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
    half.unlink()
    _finish(step.made, step.target)


def _finish(path: Path, target: Target) -> None:
    """Set the IR, and take out whatever names the machine or the tool's run. Raises `Incompatible`."""
    import onnx

    model: Any = onnx.load(str(path))
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset > target.opset:
        raise Incompatible(f"graph: opset {opset}, the runtime of the profile reads up to {target.opset}")
    model.ir_version = target.ir
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))
