"""What a model is asked and what it answers: name, datatype and shape of its tensors in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from wire.pipeline import AUDIO, EMBEDDING, IMAGE, SCORES, DataType, Pipeline

DATATYPES: Final[Mapping[DataType, str]] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor at the door; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_value(self) -> dict[str, Any]:
        """As the metadata of a model has it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Interface:
    """Both sides of a model."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    names: tuple[str, ...]
    """Of the outputs."""

    @classmethod
    def of(cls, pipeline: Pipeline, labels: Sequence[str]) -> Self:
        """By the pipeline of a bundle; `agent.serving.oip` has the table."""
        outputs = _answered(pipeline, labels)
        return cls(_asked(pipeline), outputs, tuple(t.name for t in outputs))


def _asked(pipeline: Pipeline) -> tuple[TensorInfo, ...]:
    if pipeline.language is not None:
        return (TensorInfo("text", "BYTES", (1,)),)
    if pipeline.tokenizer is not None:
        return (TensorInfo("text", "BYTES", (1 if pipeline.task == "token-classification" else -1,)),)
    if pipeline.image is not None:
        return (TensorInfo(IMAGE, "UINT8", (1, -1, -1, pipeline.image.channels)),)
    if pipeline.audio is not None:
        return (TensorInfo(AUDIO, "FP32", (1, -1)),)
    # The first axis is the batch: one at a time, see `Model.answer`.
    return tuple(TensorInfo(t.name, DATATYPES[t.dtype], (1, *t.shape[1:])) for t in pipeline.inputs)


def _answered(pipeline: Pipeline, labels: Sequence[str]) -> tuple[TensorInfo, ...]:
    if pipeline.language is not None:
        return (TensorInfo("text", "BYTES", (1,)),)
    first = pipeline.outputs[0]
    if pipeline.task == "sentence-embedding":
        return (TensorInfo(EMBEDDING, "FP32", (-1, first.shape[-1])),)
    if labels:
        kind = DATATYPES[first.dtype] if pipeline.activation == "none" else "FP32"
        labelled = (
            TensorInfo("label", "BYTES", (-1,)),
            TensorInfo("score", kind, (-1,)),
            TensorInfo(SCORES, kind, (-1, len(labels))),
        )
        return (TensorInfo("words", "BYTES", (-1,)), *labelled) if pipeline.task == "token-classification" else labelled
    rows = -1 if pipeline.task == "audio-frames" else 1
    given = (first,) if pipeline.task == "audio-frames" else pipeline.outputs
    return tuple(TensorInfo(t.name, DATATYPES[t.dtype], (rows, *t.shape[1:])) for t in given)
