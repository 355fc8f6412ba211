"""Passes that store the numbers of a LiteRT flatbuffer in fewer bits.

`keep_float` names groups of layers, as `groups` gives them, that stay as they are. Inputs and outputs stay float32.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes import litert_file
from compiler.passes.job import PassJob
from compiler.passes.onnx_file import refusals
from wire.processing import Array, Processor

ROWS = 64
"""Examples on which activations are observed: their ranges hardly move after the first dozens."""
_EVERYTHING = ".*"
_Calibration = Mapping[str | None, Sequence[Mapping[str, Array]]]


def groups(path: Path) -> list[str]:
    """Names of the groups of layers that `keep_float` may name, in the order of the graph."""
    return list(dict.fromkeys(layer.group for layer in litert_file.layers(litert_file.read(path))))


def fp16(job: PassJob) -> None:
    """Weights in float16; arithmetic stays float32."""

    def recipe(model: Any) -> Any:  # noqa: ARG001  one recipe for every graph
        made = _recipe()
        made.add_weight_only_config(_EVERYTHING, _op("ALL_SUPPORTED"), 16, algorithm_key="float_casting")
        return made

    _quantize(job, recipe)


def int8_weights(job: PassJob) -> None:
    """Weights in int8 per channel; arithmetic stays float32."""

    def recipe(model: Any) -> Any:  # noqa: ARG001  one recipe for every graph
        made = _recipe()
        made.add_weight_only_config(_EVERYTHING, _op("ALL_SUPPORTED"), 8)
        return made

    _quantize(job, recipe)


def int8_dynamic(job: PassJob) -> None:
    """Weights in int8 per channel, activations quantized as they come."""

    def recipe(model: Any) -> Any:  # noqa: ARG001  one recipe for every graph
        made = _recipe()
        made.add_dynamic_config(_EVERYTHING, _op("ALL_SUPPORTED"), 8)
        return made

    _quantize(job, recipe)


def int8_static(job: PassJob) -> None:
    """Weights in int8 per channel, activations in int8 with the ranges seen on the calibration examples.

    A network with convolutions is quantized as a whole. A transformer loses its meaning that way: there it is the
    matrix products, and the embeddings as the dynamic recipe stores them. Raises `Malformed` for bad examples.
    """

    def recipe(model: Any) -> Any:
        made = _recipe()
        if litert_file.convolutional(model):
            made.add_static_config(_EVERYTHING, _op("ALL_SUPPORTED"), 8, 8)
            for door in ("INPUT", "OUTPUT"):
                made.add_quantization_config(_EVERYTHING, _op(door), algorithm_key="no_quantize")
        else:
            made.add_static_config(_EVERYTHING, _op("FULLY_CONNECTED"), 8, 8)
            made.add_dynamic_config(_EVERYTHING, _op("EMBEDDING_LOOKUP"), 8)
        return made

    _quantize(job, recipe, _calibration(job))


def _quantize(job: PassJob, recipe: Callable[[Any], Any], calibration: _Calibration | None = None) -> None:
    """Raises `Incompatible` for a graph that is quantized already, or that the quantizer refuses."""
    from ai_edge_quantizer import quantizer  # type: ignore[import-untyped]

    model = litert_file.read(job.input)
    if litert_file.quantized(model):
        raise Incompatible("graph: it is quantized already: it can ship as it is (litert-fp32), not be quantized again")
    made = recipe(model)
    for layer in _kept(litert_file.layers(model), job.parameters.get("keep_float", ())):
        made.add_quantization_config(f"^{re.escape(layer.scope)}$", _op("ALL_SUPPORTED"), algorithm_key="no_quantize")
    with warnings.catch_warnings(), refusals("graph: the quantizer for LiteRT refuses it"):
        warnings.simplefilter("ignore")  # it says that seeing every tensor takes memory
        work_order = quantizer.Quantizer(str(job.input), made.get_quantization_recipe())
        seen = work_order.calibrate(calibration, num_threads=1) if calibration else None
        job.output.write_bytes(bytes(work_order.quantize(seen).quantized_model))


def _kept(layers: Iterable[litert_file.Layer], names: Sequence[str]) -> list[litert_file.Layer]:
    """The layers of the named groups. Raises `Incompatible` for a group that the graph does not have."""
    found = list(layers)
    unknown = sorted(set(names) - {layer.group for layer in found})
    if unknown:
        raise Incompatible(f"keep_float: the graph has no group of layers {unknown[0]!r}")
    return [layer for layer in found if layer.group in names]


def _calibration(job: PassJob) -> _Calibration:
    """For each signature what it is fed on the calibration examples; texts that are too long for one are cut."""
    from compiler.examples.examples import read as read_examples
    from compiler.sources.read import read
    from compiler.variant import pipeline_of

    assert job.calibration is not None
    source = read(job.source, Path(job.describe) if job.describe else None)
    examples = [row.example for row in read_examples(Path(job.calibration), source).spread(ROWS)]
    fed = {}
    for name, tokens in litert_file.signatures(litert_file.read(job.input)).items():
        processor = Processor(*pipeline_of(source, "litert", (tokens,) if tokens else ()))
        fed[name] = [feed for example in examples for feed in processor.feeds(example)]
    return fed


def _recipe() -> Any:
    from ai_edge_quantizer import recipe_manager

    return recipe_manager.RecipeManager()


def _op(name: str) -> Any:
    from ai_edge_quantizer.qtyping import TFLOperationName  # type: ignore[import-untyped]

    return TFLOperationName[name]
