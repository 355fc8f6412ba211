"""Passes that make an fp32 ONNX graph of a source: export, and what the quantizers want done first."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes import onnx_file
from compiler.passes.job import PassJob
from compiler.passes.samples import check_close, samples, torch_graph
from compiler.sources.source import TORCH_KINDS, Source
from wire.pipeline import TensorSpec

OPSET, IR = 17, 8
"""Of a graph for no profile in particular."""
NEWEST_TRACED = 20
"""The tables of the TorchScript exporter end here; an older graph runs wherever a newer one does."""
OLDEST_FOR_QUANTIZERS = 13
"""Since this opset QuantizeLinear knows an axis, and Squeeze and its like take their axes as an input."""


def export(job: PassJob) -> None:
    """The source as an fp32 graph that was seen to answer as the source does.

    `keep` leaves each feed-forward block that share of its neurons; then the pruned source is what it is compared with.
    Raises `Incompatible`, and `Malformed` for pruning without calibration examples.
    """
    from compiler.sources.read import read

    source = read(job.source, Path(job.describe) if job.describe else None)
    if source.kind in TORCH_KINDS:
        _trace(source, job)
    elif source.kind == "onnx":
        _take_in(source, job)
    else:
        raise Incompatible(f"source {source.place}: no converter from TFLite to ONNX is part of this compiler")


def prepare(job: PassJob) -> None:
    """Folds constants and infers shapes, so that the quantizers find every weight; the opset becomes one they know."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    model = onnx_file.load(job.input)
    if onnx_file.opset(model) < OLDEST_FOR_QUANTIZERS:
        model = _convert(model, OLDEST_FOR_QUANTIZERS)
    with onnx_file.refusals("graph: ONNX Runtime cannot prepare it"):
        # Symbolic shape inference stumbles over graphs of transformers; nothing here needs it.
        quant_pre_process(model, str(job.output), skip_symbolic_shape=True)
    onnx_file.finish(onnx_file.load(job.output), job)


def tensors(source: Source) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the exported graph: the source's own."""
    return source.inputs, source.outputs


def _trace(source: Source, job: PassJob) -> None:
    import torch

    from compiler.passes.prune import load

    torch.set_num_threads(1)
    module = load(source, job)
    opset = min(job.parameters.get("opset", OPSET), NEWEST_TRACED)
    with warnings.catch_warnings(), torch.no_grad():
        # The TorchScript exporter on purpose: the newer one writes stack traces with paths into the graph.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                tuple(_example(source)),
                str(job.output),
                dynamo=False,
                opset_version=opset,
                input_names=[spec.name for spec in source.inputs],
                output_names=[spec.name for spec in source.outputs],
                dynamic_axes={
                    spec.name: axes for spec in (*source.inputs, *source.outputs) if (axes := _axes(source, spec))
                },
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as e:
            raise Incompatible(f"source {source.place}: no ONNX graph for opset {opset}: {str(e)[:300]}") from e
    onnx_file.finish(onnx_file.load(job.output), job)
    check_close(
        source, "ONNX", samples(source, source.inputs), torch_graph(source, module), onnx_file.session(job.output)
    )


def _take_in(source: Source, job: PassJob) -> None:
    """An ONNX source in one file, of the opset and IR that are asked for."""
    from onnx import inliner

    path = Path(source.place)
    model = onnx_file.load(path)
    with onnx_file.refusals(f"source {path}: its functions cannot be put in line"):
        model = inliner.inline_local_functions(model)
    _fix_weights(model)
    target = job.parameters.get("opset", OPSET)
    if onnx_file.opset(model) > target:
        model = _convert(model, target)
    onnx_file.finish(model, job)
    onnx_file.check(onnx_file.load(job.output))
    feeds = samples(source, source.inputs)
    check_close(source, "ONNX", feeds, onnx_file.session(path), onnx_file.session(job.output))


def _fix_weights(model: Any) -> None:
    """Weights are no inputs: before IR 4 they had to be, and whoever runs the graph could set others."""
    weights = {t.name for t in model.graph.initializer}
    for given in [i for i in model.graph.input if i.name in weights]:
        model.graph.input.remove(given)
    model.ir_version = max(model.ir_version, 4)


def _convert(model: Any, target: int) -> Any:
    """The graph in another opset. Raises `Incompatible` that names the operator for which there is no way."""
    import onnx

    old = onnx_file.opset(model)
    with onnx_file.refusals(f"graph: no way from opset {old} to {target}"):
        made = onnx.version_converter.convert_version(model, target)
    # The converter passes over what it does not know: ask for what must hold.
    onnx_file.check(made)
    return made


def _example(source: Source) -> Sequence[Any]:
    """Inputs to trace with. Two rows of a text: a dimension of one would be folded into the graph."""
    import torch

    if source.text:
        ones = torch.ones(2, 8, dtype=torch.long)
        return [torch.zeros_like(ones) if spec.name == "token_type_ids" else ones for spec in source.inputs]
    return [torch.from_numpy(values) for values in samples(source, source.inputs)[0].values()]


def _axes(source: Source, spec: TensorSpec) -> dict[int, str]:
    """Names of the dimensions of any size; those of one name are of one size."""
    if source.text:
        return {0: "batch"} | {i: "tokens" for i, size in enumerate(spec.shape) if i and size == -1}
    return {i: f"{spec.name}_{i}" for i, size in enumerate(spec.shape) if i and size == -1}
