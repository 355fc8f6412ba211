"""The pass that makes a TorchScript file of a source, for runtimes in a process of their own.

Names are mangled by a second trace in one process: each pass runs in a fresh one.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes.job import PassJob
from compiler.passes.onnx_file import refusals
from compiler.passes.samples import check_close, samples, torch_graph
from compiler.sources.source import TORCH_KINDS, Source
from wire.pipeline import TensorSpec


def trace(job: PassJob) -> None:
    """The source as TorchScript that was seen to answer as the source does; a TorchScript source as it is.

    The arguments of its `forward` have the names of the source's inputs. Raises `Incompatible`.
    """
    import torch

    from compiler.sources.module import load
    from compiler.sources.read import read

    source = read(job.source, Path(job.describe) if job.describe else None)
    if source.kind not in TORCH_KINDS:
        raise Incompatible(
            f"source {source.place}: no converter from {source.kind} to TorchScript is part of this compiler"
        )
    torch.set_num_threads(1)
    module = load(source, pooling=job.parameters.get("pooling"))
    feeds = samples(source, source.inputs)
    if source.kind == "torchscript":
        _check_arguments(source, module)
        shutil.copyfile(source.place, job.output)
    else:
        with refusals(f"source {source.place}: it cannot be traced"):
            job.output.write_bytes(_traced(source, module, list(feeds[0].values())))
    made = torch.jit.load(str(job.output))  # type: ignore[no-untyped-call]
    check_close(source, "TorchScript", feeds, torch_graph(source, module), torch_graph(source, made))


def tensors(source: Source) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs by the names of the source, outputs `output_0`, `output_1`, ...: TorchScript has no names for them."""
    return source.inputs, tuple(replace(spec, name=f"output_{i}") for i, spec in enumerate(source.outputs))


def _traced(source: Source, module: Any, sample: Sequence[Any]) -> bytes:
    import torch

    named = _by_name(module, [spec.name for spec in source.inputs])
    with torch.no_grad(), warnings.catch_warnings():
        # It warns of every branch on a shape; whether the trace holds for other sizes is seen on the samples.
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(named, tuple(torch.from_numpy(values) for values in sample))  # type: ignore[no-untyped-call]
    # In memory: a file would carry its own name inside.
    data = io.BytesIO()
    torch.jit.save(traced, data)
    return data.getvalue()


def _by_name(module: Any, names: Sequence[str]) -> Any:
    """The module with the source's names for its inputs: tracing takes them from the signature of `forward`."""
    from torch import nn

    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return self.module(*inputs)

    arguments = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    ByName.forward.__signature__ = Signature(arguments)  # type: ignore[attr-defined]
    return ByName().eval()


def _check_arguments(source: Source, module: Any) -> None:
    given = [a.name for a in module.forward.schema.arguments if a.name != "self"]
    wanted = [spec.name for spec in source.inputs]
    if given[: len(wanted)] != wanted:
        raise Incompatible(
            f"source {source.place}: its forward takes {', '.join(given)}, the description names {', '.join(wanted)}: "
            "name the inputs as forward does"
        )
