"""Static int8 of an ONNX graph: the ranges of activations are observed on real examples and written into it (QDQ)."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import Malformed
from compiler.passes import onnx_file
from compiler.passes.job import PassJob
from compiler.passes.onnx_groups import is_transformer
from compiler.passes.onnx_quantize import finish_quantized, left_out, reduced, shrink_embeddings, to_quantize

EXAMPLES = 100
"""Examples that are observed, taken from every label in turn."""
RUNS = 1000
"""Most runs of the graph for them: a sound asks it once a frame."""
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""All that is quantized of a transformer: its norms and softmax do not survive eight bits."""
ALL = (
    *PRODUCTS,
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Resize"),
)


def int8_static(job: PassJob) -> None:
    """Weights in int8 per channel, activations in uint8 with the range seen on the calibration examples.

    Unsigned on purpose: with signed activations MiniLM ran six times slower on x86-64, and further from its source.
    `reduce_range` as for dynamic int8.
    """
    from onnxruntime.quantization import QuantType  # type: ignore[import-untyped]

    model = to_quantize(job)
    operators = PRODUCTS if is_transformer(model) else ALL
    made = quantize(model, job, operators, activation_type=QuantType.QUInt8, reduce_range=reduced(job))
    shrink_embeddings(made, left_out(model, job))
    finish_quantized(made, job)


def quantize(model: Any, job: PassJob, operators: Sequence[str], **how: Any) -> Any:
    """The graph with pairs of QuantizeLinear and DequantizeLinear. Raises `Incompatible`."""
    from onnxruntime.quantization import QuantType, quantize_static

    options = {
        # Attention multiplies activations with each other: those products stay float.
        "MatMulConstBOnly": True,
        # What a product gives is added up and normed in float; only what goes into the next one is quantized.
        "OpTypesToExcludeOutputQuantization": list(PRODUCTS) if operators == PRODUCTS else [],
        **how.pop("extra_options", {}),
    }
    with onnx_file.refusals("graph: no way to static int8"):
        quantize_static(
            model,
            str(job.output),
            _Reader(feeds(job)),
            op_types_to_quantize=list(operators),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*left_out(model, job), *_after_outputs(model)],
            extra_options=options,
            **how,
        )
    return onnx_file.load(job.output)


def feeds(job: PassJob) -> Sequence[Mapping[str, Any]]:
    """What the graph is fed for the calibration examples. Raises `Malformed` without any."""
    from compiler.examples.examples import read as read_examples
    from compiler.sources.read import read
    from compiler.variant import pipeline_of
    from wire.processing import Processor

    if job.calibration is None:
        raise Malformed(f"pass {job.name}: it needs calibration examples")
    source = read(job.source, Path(job.describe) if job.describe else None)
    processor = Processor(*pipeline_of(source, "onnxruntime"))
    rows = read_examples(Path(job.calibration), source).spread(EXAMPLES)
    found = [feed for row in rows for feed in processor.feeds(row.example)]
    return found[:: max(1, len(found) // RUNS)]


def _after_outputs(model: Any) -> list[str]:
    """Relu and Clip of an output: the quantizer would give the output their range, and cut off what they cut off."""
    outputs = {out.name for out in model.graph.output}
    return [n.name for n in model.graph.node if n.op_type in ("Relu", "Clip") and n.input[0] in outputs]


class _Reader:
    """Examples in the form that ONNX Runtime's calibrator asks for."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> Mapping[str, Any] | None:
        """The next example; None at the end."""
        return next(self._rows, None)
