"""A torch source as a module. This runs code of the source: only in the process of a pass, which holds no secrets.

module = load(source)
module(*tensors)     # in the order of source.inputs -> a tensor, or a tuple in the order of source.outputs
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compiler.errors import Incompatible, Malformed
from compiler.sources.archive import check_zip
from compiler.sources.assemble import check_labels
from compiler.sources.source import Source
from wire.pipeline import TensorSpec

_FREE, _TOKENS = 16, 8
"""What a size that may change is in the trial run."""


def load(source: Source, *, pooling: str | None = None) -> nn.Module:
    """The module, in evaluation mode, after one trial run. `pooling` overrides that of a sentence encoder.

    Raises `Malformed` for NaN weights, and for outputs that are not what the source says; `Incompatible` for a module
    that cannot be loaded or run here.
    """
    if pooling is not None and source.kind != "huggingface":
        raise Incompatible(f"source {source.place}: only a sentence encoder has a pooling to choose")
    module = _load(source, pooling).eval()
    _check_weights(module, source)
    _check_outputs(_trial(module, source), source)
    return module


def _load(source: Source, pooling: str | None) -> nn.Module:
    match source.kind:
        case "huggingface":
            from compiler.sources import huggingface  # noqa: PLC0415  other kinds do not wait for it

            return huggingface.load(source, pooling)
        case "torchscript":
            return _torchscript(source)
        case "torch-module":
            return _called(source)
        case _:
            raise Incompatible(f"source {source.place}: a {source.kind} source is no torch module")


def _torchscript(source: Source) -> nn.Module:
    check_zip(Path(source.place))
    try:
        module: nn.Module = torch.jit.load(source.place, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as e:
        raise Malformed(f"source {source.place}: not sound TorchScript: {_first_line(e)}: save it again") from e
    return module


def _called(source: Source) -> nn.Module:
    name, _, function = source.place.partition(":")
    if source.search is not None:
        sys.path.insert(0, str(source.search))
    try:
        made = getattr(importlib.import_module(name), function)()
    except (Exception, SystemExit) as e:  # code of the source: it may raise anything
        raise Malformed(f"source python:{source.place}: {type(e).__name__}: {_first_line(e)}") from e
    if not isinstance(made, nn.Module):
        raise Malformed(f"source python:{source.place}: returned {type(made).__name__}, expected a torch.nn.Module")
    return made


def _check_weights(module: nn.Module, source: Source) -> None:
    for name, weight in module.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise Malformed(
                f"source {source.place}: weight {name} holds NaN or infinite numbers: train or copy it again"
            )


def _trial(module: nn.Module, source: Source) -> Sequence[Any]:
    """The outputs for one example of zeros. Raises `Incompatible`."""
    example = [_zeros(spec, source) for spec in source.inputs]
    try:
        with torch.no_grad():
            out = module(*example)
    except (Exception, SystemExit) as e:  # code of the source: it may raise anything
        shapes = ", ".join(
            f"{spec.name} {list(value.shape)}" for spec, value in zip(source.inputs, example, strict=True)
        )
        raise Incompatible(f"source {source.place}: it does not run on {shapes}: {_first_line(e)}") from e
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _zeros(spec: TensorSpec, source: Source) -> Tensor:
    free = _FREE if source.text is None else min(_TOKENS, source.text.max_length)
    make = torch.ones if spec.name == "attention_mask" else torch.zeros
    return make([free if size == -1 else size for size in spec.shape], dtype=getattr(torch, spec.dtype))


def _check_outputs(outputs: Sequence[Any], source: Source) -> None:
    where = f"source {source.place}"
    if not all(isinstance(value, Tensor) for value in outputs):
        kinds = ", ".join(type(value).__name__ for value in outputs)
        raise Malformed(f"{where}: forward returns {kinds}; expected a tensor or a tuple of tensors")
    if len(outputs) != len(source.outputs):
        raise Malformed(
            f"{where}: forward returns {len(outputs)} tensors, {len(source.outputs)} are described: name each one's "
            "[[outputs]] in the description"
        )
    check_labels(source.labels, outputs[0].shape[-1] if outputs[0].dim() else 1, f"{where}: {source.outputs[0].name}")
    for spec, value in zip(source.outputs, outputs, strict=True):
        _check_output(spec, value, where)


def _check_output(spec: TensorSpec, value: Tensor, where: str) -> None:
    kind, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
    fits = len(shape) == len(spec.shape) and all(a in (-1, b) for a, b in zip(spec.shape, shape, strict=True))
    if kind != spec.dtype or not fits:
        raise Malformed(
            f"{where}: output {spec.name} is {kind} {shape}, {spec.dtype} {list(spec.shape)} is described: correct "
            "its [[outputs]] and labels"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
