"""A tiny real bundle of every task, in ONNX; what each answers is worked out in numpy.

bundle = TASKS["image-classification"].write(tmp_path / "layout")
TASKS["audio-frames"].pipeline, .labels, .cases          # an example and what must be answered to it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import CLS, FIRST_WORD, SEP, WORDS, TinyBundle, tokenizer_json, write_bundle

from wire.bundle import Role
from wire.pipeline import Audio, DataType, Golden, GoldenCase, Image, Labels, Pipeline, TensorSpec, Tokenizer
from wire.processing import Array, Arrays, Example, to_tensor

TEXT = "turn the light off"
ROWS = FIRST_WORD + len(WORDS)


@dataclass(frozen=True)
class TinyTask:
    """A model with what stands around it, and examples with their answers: outputs and labels."""

    pipeline: Pipeline
    model: bytes
    cases: Sequence[tuple[Example, Arrays, tuple[str, ...]]]
    labels: tuple[str, ...] = ()
    runtime: str = "onnxruntime"
    file: str = "model.onnx"

    def write(self, layout: Path, family: str = "tasks") -> TinyBundle:
        """As a bundle `<family>/<task>` of version 1.0.0; only the files that the pipeline names."""
        files: list[tuple[Role, str, bytes]] = [
            ("model", self.file, self.model),
            ("pipeline", "pipeline.json", self.pipeline.to_bytes()),
            ("golden", "golden.json", self.golden().to_bytes()),
        ]
        if self.labels:
            files.append(("labels", "labels.json", Labels(labels=self.labels).to_bytes()))
        if self.pipeline.tokenizer:
            files.append(("tokenizer", "tokenizer.json", tokenizer_json()))
        return write_bundle(layout, files, family=family, name=self.pipeline.task, runtime=self.runtime)

    def golden(self) -> Golden:
        return Golden(max_abs=1e-4, cases=tuple(_golden_case(*case) for case in self.cases))


def _golden_case(example: Example, outputs: Arrays, labels: tuple[str, ...]) -> GoldenCase:
    told = {name: to_tensor(values) for name, values in outputs.items()}
    if isinstance(example, str):
        return GoldenCase(text=example, outputs=told, labels=labels)
    return GoldenCase(inputs={name: to_tensor(a) for name, a in example.items()}, outputs=told, labels=labels)


def spec(name: str, *shape: int, dtype: DataType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


# --- the models -----------------------------------------------------------------------------------------------

_TABLE = np.random.default_rng(3).normal(0, 1, (ROWS, 2)).astype(np.float32)
"""One row for each token, of the models that read text."""


def _words() -> TinyTask:
    """Each token's row are its two logits."""
    ids = [FIRST_WORD + WORDS.index(word) for word in TEXT.split()]
    scores = _softmax(_TABLE[ids])
    labels = ("other", "thing")
    return TinyTask(
        pipeline=Pipeline(
            task="token-classification",
            tokenizer=_tokenizer(),
            inputs=(spec("input_ids", 1, -1, dtype="int64"),),
            outputs=(spec("logits", 1, -1, 2),),
            activation="softmax",
            labels="labels.json",
        ),
        model=_onnx(
            [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
            inputs={"input_ids": (TensorProto.INT64, ["batch", "tokens"])},
            outputs={"logits": (TensorProto.FLOAT, ["batch", "tokens", 2])},
            constants={"table": _TABLE},
        ),
        labels=labels,
        cases=[(TEXT, {"scores": scores}, tuple(labels[i] for i in scores.argmax(axis=1)))],
    )


def _embedding() -> TinyTask:
    """The sum of all rows, of length 1."""
    ids = [CLS, *(FIRST_WORD + WORDS.index(word) for word in TEXT.split()), SEP]
    summed = _TABLE[ids].sum(axis=0)
    return TinyTask(
        pipeline=Pipeline(
            task="sentence-embedding",
            tokenizer=_tokenizer(),
            inputs=(spec("input_ids", 1, -1, dtype="int64"),),
            outputs=(spec("embedding", 1, 2),),
            activation="normalize",
        ),
        model=_onnx(
            [
                helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
                helper.make_node("ReduceSum", ["rows", "tokens"], ["embedding"], keepdims=0),
            ],
            inputs={"input_ids": (TensorProto.INT64, ["batch", "tokens"])},
            outputs={"embedding": (TensorProto.FLOAT, ["batch", 2])},
            constants={"table": _TABLE, "tokens": np.array([1], np.int64)},
        ),
        cases=[(TEXT, {"embedding": summed / np.linalg.norm(summed)}, ())],
    )


def _picture() -> TinyTask:
    """The mean of each channel are the logits: which colour a picture has."""
    labels = ("red", "green", "blue")
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:, :, 1] = 200
    return TinyTask(
        pipeline=Pipeline(
            task="image-classification",
            image=Image(height=4, width=4, channels=3, layout="NCHW"),
            inputs=(spec("pixels", 1, 3, 4, 4),),
            outputs=(spec("logits", 1, 3),),
            activation="softmax",
            labels="labels.json",
        ),
        model=_onnx(
            [helper.make_node("ReduceMean", ["pixels"], ["logits"], axes=[2, 3], keepdims=0)],
            inputs={"pixels": (TensorProto.FLOAT, [1, 3, 4, 4])},
            outputs={"logits": (TensorProto.FLOAT, [1, 3])},
        ),
        labels=labels,
        cases=[({"image": picture}, {"scores": _softmax(np.float32([0, 200 / 255, 0]))}, ("green",))],
    )


FRAME, HOP = 8, 4


def _sound() -> TinyTask:
    """The loudest sample of a frame decides: two frames of a sound, one quiet and one loud."""
    labels = ("quiet", "loud")
    sound = np.float32([0] * FRAME + [0.9] * HOP)
    scores = np.stack([_softmax(np.float32([1 - 10 * peak, 10 * peak - 1])) for peak in (0, 0.9)])
    return TinyTask(
        pipeline=Pipeline(
            task="audio-frames",
            audio=Audio(rate=16000, frame=FRAME, hop=HOP),
            inputs=(spec("frame", 1, FRAME),),
            outputs=(spec("logits", 1, 2),),
            activation="softmax",
            labels="labels.json",
        ),
        model=_onnx(
            [
                helper.make_node("Abs", ["frame"], ["loudness"]),
                helper.make_node("ReduceMax", ["loudness"], ["peak"], axes=[1], keepdims=1),
                helper.make_node("Mul", ["peak", "slope"], ["raised"]),
                helper.make_node("Add", ["raised", "base"], ["logits"]),
            ],
            inputs={"frame": (TensorProto.FLOAT, [1, FRAME])},
            outputs={"logits": (TensorProto.FLOAT, [1, 2])},
            constants={"slope": np.float32([[-10, 10]]), "base": np.float32([[1, -1]])},
        ),
        labels=labels,
        cases=[({"audio": sound}, {"scores": scores}, labels)],
    )


def _tensors() -> TinyTask:
    """Two inputs, two outputs of different types, one of them of any length."""
    a, b = np.int64([[3, -4]]), np.float32([[0.5, 1.5, 2.5]])
    return TinyTask(
        pipeline=Pipeline(
            task="tensors",
            inputs=(spec("a", 1, 2, dtype="int64"), spec("b", -1, -1)),
            outputs=(spec("minus", 1, 2, dtype="int64"), spec("double", 1, -1)),
            activation="none",
        ),
        model=_onnx(
            [helper.make_node("Neg", ["a"], ["minus"]), helper.make_node("Add", ["b", "b"], ["double"])],
            inputs={"a": (TensorProto.INT64, [1, 2]), "b": (TensorProto.FLOAT, ["batch", "n"])},
            outputs={"minus": (TensorProto.INT64, [1, 2]), "double": (TensorProto.FLOAT, ["batch", "n"])},
        ),
        cases=[({"a": a, "b": b}, {"minus": -a[0], "double": 2 * b[0]}, ())],
    )


def _tokenizer() -> Tokenizer:
    return Tokenizer(kind="huggingface-json", file="tokenizer.json", max_length=8, before=(CLS,), after=(SEP,), pad=0)


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)


def _onnx(
    nodes: Sequence[Any],
    *,
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, tuple[int, list[int | str]]],
    constants: Mapping[str, Array] | None = None,
) -> bytes:
    """A graph in ONNX; names and types of its tensors with their shapes."""
    doors = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()]
    graph = helper.make_graph(nodes, "tiny", *doors, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString(deterministic=True))


TASKS: Mapping[str, TinyTask] = {
    task.pipeline.task: task for task in (_words(), _embedding(), _picture(), _sound(), _tensors())
}
"""Every task but text classification, which is `tiny_bundle.make_layout`."""
