"""Sample inputs, and whether a graph answers on them as its source does.

A converter that goes wrong seldom says so: each pass that makes an fp32 graph compares it with the source before it is
believed. Quantized graphs are judged by accuracy instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import Incompatible
from compiler.sources.source import Source
from wire.pipeline import TensorSpec
from wire.processing import Array, Arrays, Graph

CLOSE = 1e-3
"""How far a number of an fp32 graph may be off, as a share of the range of that output."""
LENGTHS = (5, 8, 13)
"""Token counts on which a graph of any length is tried: one length alone would not show a length that was baked in."""
FREE = (16, 16, 24)
"""Likewise for every other dimension of any size."""


def samples(source: Source, inputs: Sequence[TensorSpec], lengths: Sequence[int] = ()) -> list[dict[str, Array]]:
    """Feeds for a graph, batch 1, the same in every run: ids within the vocabulary, floats between -1 and 1.

    `lengths` are the token counts of a graph without dynamic shapes.
    """
    random = np.random.default_rng(0)
    if source.text:
        most = source.text.max_length
        sizes = sorted({min(n, most) for n in lengths or LENGTHS})
        ids = _vocabulary(source.text.tokenizer)
        return [_tokens(random, inputs, n, ids) for n in sizes]
    return [{spec.name: _values(random, spec, free) for spec in inputs} for free in FREE]


def torch_graph(source: Source, module: Any) -> Graph:
    """A module of `compiler.sources.module.load` as a function. It raises `Incompatible` when it does not run."""

    def run(arrays: Arrays) -> Mapping[str, Array]:
        import torch  # noqa: PLC0415  torch takes seconds, and the process of an ONNX source has no need of it

        tensors = [torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in source.inputs]
        try:
            with torch.no_grad():
                out = module(*tensors)
        except (RuntimeError, IndexError, TypeError, ValueError) as e:
            shapes = ", ".join(f"{name} {values.dtype}{list(values.shape)}" for name, values in arrays.items())
            raise Incompatible(f"source {source.place}: it does not run on {shapes}: {str(e)[:300]}") from e
        results = out if isinstance(out, tuple | list) else (out,)
        return {spec.name: value.numpy() for spec, value in zip(source.outputs, results, strict=True)}

    return run


def check_close(source: Source, kind: str, feeds: Sequence[Arrays], expected: Graph, got: Graph) -> None:
    """Raises `Incompatible` when a graph's outputs are further off than `CLOSE` on one of the feeds, or not finite."""
    wanted, found = [expected(feed) for feed in feeds], [got(feed) for feed in feeds]
    for name in wanted[0]:
        worst = max(_off(old[name], new[name]) for old, new in zip(wanted, found, strict=True))
        # A NaN compares false with everything: ask for what must hold.
        if not worst <= CLOSE * _range(w[name] for w in wanted):
            raise Incompatible(
                f"source {source.place}: output {name} of its {kind} graph is {worst:.4g} off on a sample: "
                "it does not say what the source says"
            )


def _vocabulary(tokenizer: bytes) -> int:
    return len(json.loads(tokenizer)["model"]["vocab"])


def _tokens(random: np.random.Generator, inputs: Sequence[TensorSpec], n: int, ids: int) -> dict[str, Array]:
    """Random ids, the last quarter of them masked: padding must not reach the answer, or as little as in the source."""
    columns = {
        "input_ids": random.integers(0, ids, n),
        "attention_mask": np.arange(n) < n - n // 4,
        "token_type_ids": np.zeros(n),
    }
    return {spec.name: columns[spec.name].astype(spec.dtype)[None] for spec in inputs}


def _values(random: np.random.Generator, spec: TensorSpec, free: int) -> Array:
    """Integers are 0 or 1: whatever they count or choose, most graphs take these."""
    shape = [1 if i == 0 and size == -1 else free if size == -1 else size for i, size in enumerate(spec.shape)]
    if spec.dtype.startswith("float"):
        return random.uniform(-1, 1, shape).astype(spec.dtype)
    return random.integers(0, 256 if spec.dtype == "uint8" else 2, shape).astype(spec.dtype)


def _off(old: Array, new: Array) -> float:
    """The largest difference. A source may overflow on a sample that no user would send: its graph then must too."""
    if old.shape != new.shape:
        return float("nan")
    wide, other = old.astype(np.float64), new.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    return float(np.abs(wide[~same] - other[~same]).max(initial=0.0))


def _range(values: Iterator[Array]) -> float:
    flat = np.concatenate([v.astype(np.float64).ravel() for v in values])
    finite = flat[np.isfinite(flat)]
    return max(float(finite.max(initial=0.0) - finite.min(initial=0.0)), 1e-6)
