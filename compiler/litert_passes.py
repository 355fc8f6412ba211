"""Passes that make LiteRT flatbuffers: conversion with fixed shapes, dynamic int8."""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from compiler.errors import Incompatible
from compiler.runtime import litert
from compiler.work import Step

OUTPUT = "output_0"
"""What the converter calls a module's only output in the default signature."""


def convert(step: Step) -> None:
    """The fp32 flatbuffer, int32 `[1, tokens]` inputs by name to float32 logits `[1, classes]`."""
    import litert_torch  # type: ignore[import-untyped]
    import torch

    tokens = step.target.tokens or step.work.source.max_length
    # A tensor of its own for each input: two names for one tensor would become one input.
    sample = {name: torch.ones(1, tokens, dtype=torch.int32) for name in step.work.module.inputs}
    try:
        flatbuffer = litert_torch.convert(step.work.module, sample_kwargs=sample)
    except (RuntimeError, ValueError, NotImplementedError) as e:
        raise Incompatible(f"source {step.work.source.folder}: LiteRT cannot express it: {str(e)[:300]}") from e
    flatbuffer.export(str(step.made))
    pipeline = step.work.pipeline(OUTPUT, tokens)
    step.work.check_equal(litert(step.made, pipeline), pipeline, "LiteRT")


def dynamic_int8(step: Step) -> None:
    """Weights in int8 per channel, activations quantized as they come."""
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-untyped]

    work_order = quantizer.Quantizer(str(step.given))
    work_order.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    step.made.write_bytes(bytes(work_order.quantize().quantized_model))
