"""What stands around a graph, and the folder in which a variant lies.

    around = pipeline_of(source, "litert", lengths=(16, 32))   # pipeline, labels, tokenizer bytes
    Processor(*around)                                         # wire.processing: example in, answer out
    lay_out(folder, model, around)                             # pipeline.json, labels.json, tokenizer.json, model.*

The same source, runtime and lengths give the same bytes.
"""

# ruff: noqa: PLC0415  a pass module and the tokenizer's libraries are imported where they are used
from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from compiler.bundle.tokenizer import FILE, DeviceFile, for_device
from compiler.plan.recipes import MODEL_FILES
from compiler.sources.source import Source
from wire.bundle import Role, Runtime
from wire.pipeline import Labels, Pipeline, TensorSpec

PIPELINE, LABELS, GOLDEN, LINEAGE = "pipeline.json", "labels.json", "golden.json", "lineage.json"
ROLES: dict[str, Role] = {
    PIPELINE: "pipeline",
    LABELS: "labels",
    GOLDEN: "golden",
    LINEAGE: "lineage",
    FILE: "tokenizer",
    **dict.fromkeys(MODEL_FILES.values(), "model"),
}


class Around(NamedTuple):
    """What stands around a graph, in the order that `wire.processing.Processor` takes it."""

    pipeline: Pipeline
    labels: tuple[str, ...]
    tokenizer: bytes | None


@dataclass(frozen=True)
class Variant:
    """A folder with `pipeline.json` and all that it names. `worker` is the Python of a runtime with its own one."""

    folder: Path
    runtime: Runtime
    worker: str | None = None

    @property
    def model(self) -> Path:
        """The file that the runtime loads."""
        return self.folder / MODEL_FILES[self.runtime]


def pipeline_of(source: Source, runtime: Runtime, lengths: tuple[int, ...] = ()) -> Around:
    """What stands around the graph of a source on a runtime.

    `lengths` are the token counts of a graph without dynamic shapes. Raises `Malformed` or `Incompatible` for a
    tokenizer that cannot be made for a device.
    """
    inputs, outputs = _tensors(source, runtime, lengths)
    made = device_tokenizer(source)
    pipeline = Pipeline(
        task=source.task,
        inputs=inputs,
        outputs=outputs,
        activation=source.activation,
        tokenizer=made.tokenizer(longest(source, lengths)) if made else None,
        image=source.image,
        audio=source.audio,
        labels=LABELS if source.labels else None,
        lengths=lengths,
    )
    return Around(pipeline, source.labels, made.data if made else None)


def longest(source: Source, lengths: tuple[int, ...] = ()) -> int:
    """The most tokens of a text that reach the graph."""
    assert source.text is not None
    return min((*lengths[-1:], source.text.max_length))


def device_tokenizer(source: Source) -> DeviceFile | None:
    """The tokenizer that ships, made once in a process; None for a task without text."""
    return _for_device(source.text.tokenizer) if source.text else None


def lay_out(folder: Path, model: Path, runtime: Runtime, around: Around) -> None:
    """Fill a new folder with a variant; the model is linked where the disk allows it, and must not be written to."""
    folder.mkdir(parents=True)
    (folder / PIPELINE).write_bytes(around.pipeline.to_bytes())
    if around.labels:
        (folder / LABELS).write_bytes(Labels(labels=around.labels).to_bytes())
    if around.tokenizer is not None:
        (folder / FILE).write_bytes(around.tokenizer)
    link(model, folder / MODEL_FILES[runtime])


def link(old: Path, new: Path) -> None:
    """The same file under another name; a copy where the folders lie on two disks."""
    try:
        os.link(old, new)
    except OSError:
        new.write_bytes(old.read_bytes())


@cache
def _for_device(tokenizer: bytes) -> DeviceFile:
    return for_device(tokenizer)


def _tensors(
    source: Source, runtime: Runtime, lengths: tuple[int, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The graph's own inputs and outputs: what the passes of a runtime call them."""
    match runtime:
        case "onnxruntime" | "tensorrt":
            from compiler.passes import onnx_export

            return onnx_export.tensors(source)
        case "litert" | "tflite-runtime":
            from compiler.passes import litert

            return litert.tensors(source, lengths)
        case _:
            return source.inputs, source.outputs
