"""The pass that makes an fp32 LiteRT flatbuffer of a source, with fixed shapes.

A text model with several lengths becomes one file with a signature `tokens_<n>` for each; they share the weights.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes import litert_file
from compiler.passes.job import PassJob
from compiler.passes.onnx_file import refusals
from compiler.passes.samples import check_close, samples, torch_graph
from compiler.runtimes import litert
from compiler.sources.source import TORCH_KINDS, Source
from wire.pipeline import DataType, TensorSpec
from wire.processing import Arrays, Graph

_NARROW: Mapping[DataType, DataType] = {"int64": "int32", "float64": "float32"}
"""What the converter makes of numbers of 64 bits."""


def convert(job: PassJob) -> None:
    """The source as an fp32 flatbuffer that was seen to answer as the source does; a TFLite source as it is.

    `keep` leaves each feed-forward block that share of its neurons; then the pruned source is what it is compared with.
    Raises `Incompatible`, and `Malformed` for pruning without calibration examples.
    """
    from compiler.sources.read import read

    source = read(job.source, Path(job.describe) if job.describe else None)
    if source.kind == "tflite":
        _take_in(source, job)
    elif source.kind == "torchscript":
        raise Incompatible(
            f"source {source.place}: the converter to LiteRT traces Python modules, and TorchScript is none: name the "
            "function that makes the module (python:package.module:function)"
        )
    elif source.kind in TORCH_KINDS:
        _trace(source, job)
    else:
        raise Incompatible(f"source {source.place}: no converter from ONNX to LiteRT is part of this compiler")


def tensors(source: Source, lengths: tuple[int, ...] = ()) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the flatbuffer; -1 tokens where it has several lengths.

    Raises `Incompatible` for a source of any size: a flatbuffer has fixed shapes.
    """
    if source.kind == "tflite":
        return source.inputs, source.outputs
    tokens = (_lengths(source, lengths) if len(lengths) < 2 else (-1,))[-1:] if source.text else ()
    inputs = tuple(replace(_fixed(spec, tokens), name=spec.name) for spec in source.inputs)
    free = [spec for spec in inputs if not source.text and -1 in spec.shape]
    if free:
        raise Incompatible(
            f"source {source.place}: input {free[0].name} has the shape {list(free[0].shape)}, LiteRT needs fixed "
            "sizes: give them in the description"
        )
    outputs = (replace(_fixed(spec, tokens), name=f"output_{i}") for i, spec in enumerate(source.outputs))
    return inputs, tuple(outputs)


def _trace(source: Source, job: PassJob) -> None:
    import litert_torch  # type: ignore[import-untyped]
    import torch

    from compiler.passes.prune import load

    torch.set_num_threads(1)
    module = load(source, job)
    traced = _lean(source, module)
    lengths = _lengths(source, tuple(job.parameters.get("lengths", ())))
    converter = litert_torch
    for name, feed in _signatures(source, lengths).items():
        sample = {key: torch.from_numpy(values) for key, values in feed.items()}
        converter = converter.signature(name, _by_name(traced, list(sample)), sample_kwargs=sample)
    with refusals(f"source {source.place}: LiteRT cannot express it"):
        converter.convert().export(str(job.output))
    inputs, _ = tensors(source, lengths)
    feeds = samples(source, inputs, lengths)
    check_close(source, "LiteRT", feeds, torch_graph(source, module), _renamed(litert(job.output), source))


def _lean(source: Source, module: Any) -> Any:
    """The module in the form that runs fastest here, where its structure is known."""
    if source.huggingface is None or not source.huggingface.plain_bert:
        return module
    from compiler.passes.lean_bert import LeanBert

    return LeanBert(module)


def _take_in(source: Source, job: PassJob) -> None:
    """A TFLite source, once the runtime has run it."""
    shutil.copyfile(source.place, job.output)
    graph = litert(job.output)
    for feed in samples(source, source.inputs):
        graph(feed)


def _signatures(source: Source, lengths: Sequence[int]) -> dict[str, Arrays]:
    """Each signature with a sample of its inputs."""
    if len(lengths) > 1:
        return {litert_file.signature(n): _sample(source, (n,)) for n in lengths}
    return {litert_file.DEFAULT_SIGNATURE: _sample(source, tuple(lengths))}


def _sample(source: Source, lengths: tuple[int, ...]) -> Arrays:
    # Arrays of their own for each input: two names for one tensor would become one input.
    return samples(source, tensors(source, lengths)[0], lengths)[0]


def _by_name(module: Any, names: Sequence[str]) -> Any:
    """The module with the source's names for its inputs: they become those of the signature."""
    from torch import nn

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **inputs: Any) -> Any:
            return self.module(*(inputs[name] for name in names))

    return ByName().eval()


def _renamed(graph: Graph, source: Source) -> Graph:
    """The graph with the source's names for its outputs."""
    names = {f"output_{i}": spec.name for i, spec in enumerate(source.outputs)}
    return lambda feed: {names.get(name, name): values for name, values in graph(feed).items()}


def _lengths(source: Source, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The token counts of a text, its longest without any. Raises `Incompatible` for more than the source takes."""
    if source.text is None:
        return ()
    if lengths and lengths[-1] > source.text.max_length:
        raise Incompatible(f"lengths: {lengths[-1]} tokens, a text of the source has at most {source.text.max_length}")
    return lengths or (source.text.max_length,)


def _fixed(spec: TensorSpec, tokens: Sequence[int]) -> TensorSpec:
    """Batch 1; every other open dimension of a text is its tokens."""
    rest = [tokens[0] if size == -1 and tokens else size for size in spec.shape[1:]]
    return replace(spec, dtype=_NARROW.get(spec.dtype, spec.dtype), shape=(1, *rest) if spec.shape else ())
