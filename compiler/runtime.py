"""Runs a variant in the runtime that serves it, as the device does: one text at a time, on one thread.

    variant = open_variant(folder)          # a folder with pipeline.json, labels.json, tokenizer and model
    variant.scores("turn on the light")     # one score per label

Imports the runtime alone, no torch: it runs in a process of its own (compiler/score.py), so that a runtime that crashes
takes only a candidate with it.
"""

# ruff: noqa: PLC0415  heavy libraries are imported where they are used: a cached build must not wait for them
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.errors import Incompatible
from compiler.tokenizer import DeviceTokenizer
from wire.bundle import Pipeline

Arrays = Mapping[str, npt.NDArray[np.int64]]
Run = Callable[[Arrays], npt.NDArray[np.float32]]

MODEL_FILES = {"onnxruntime": "model.onnx", "litert": "model.tflite"}
PIPELINE, LABELS, GOLDEN = "pipeline.json", "labels.json", "golden.json"


class Variant:
    """A loaded variant."""

    def __init__(self, pipeline: Pipeline, tokenizer: DeviceTokenizer, run: Run) -> None:
        self._pipeline, self._tokenizer, self._run = pipeline, tokenizer, run

    def scores(self, text: str) -> tuple[float, ...]:
        """One score per label, float32 values."""
        logits = self._run(arrays(self._tokenizer.row(text), self._pipeline))[0]
        values = softmax(logits) if self._pipeline.activation == "softmax" else logits
        return tuple(float(v) for v in values)


def open_variant(folder: Path) -> Variant:
    """Load what lies in `folder`. Raises `Incompatible` when no runtime here reads the model."""
    pipeline = Pipeline.from_bytes((folder / PIPELINE).read_bytes())
    tokenizer = DeviceTokenizer((folder / pipeline.tokenizer.file).read_bytes(), pipeline.tokenizer)
    if (folder / MODEL_FILES["litert"]).exists():
        return Variant(pipeline, tokenizer, litert(folder / MODEL_FILES["litert"], pipeline))
    return Variant(pipeline, tokenizer, onnxruntime(folder / MODEL_FILES["onnxruntime"], pipeline))


def arrays(row: list[int], pipeline: Pipeline) -> dict[str, npt.NDArray[np.int64]]:
    """The graph's inputs `[1, tokens]` for the ids of one text."""
    fill = (pipeline.pad_to or len(row)) - len(row)
    columns = {
        "input_ids": row + [pipeline.tokenizer.pad] * fill,
        "attention_mask": [1] * len(row) + [0] * fill,
        "token_type_ids": [0] * (len(row) + fill),
    }
    return {name: np.asarray([columns[name]], np.int64) for name in pipeline.inputs}


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores `[classes]` that add up to one."""
    raised: npt.NDArray[np.float32] = np.exp(logits - logits.max())
    scores: npt.NDArray[np.float32] = raised / raised.sum()
    return scores


def onnxruntime(path: Path, pipeline: Pipeline) -> Run:
    """The graph of an ONNX file as a function. Raises `Incompatible`."""
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's errors share no base below Exception
        raise Incompatible(f"variant {path.name}: onnxruntime refuses it: {e}") from e
    return lambda inputs: session.run([pipeline.output], dict(inputs))[0]


def litert(path: Path, pipeline: Pipeline) -> Run:
    """The default signature of a flatbuffer as a function. Raises `Incompatible`."""
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        run: Any = interpreter.get_signature_runner()
    except (ValueError, RuntimeError) as e:
        raise Incompatible(f"variant {path.name}: LiteRT refuses it: {e}") from e
    kinds = {name: detail["dtype"] for name, detail in run.get_input_details().items()}
    return lambda inputs: run(**{k: v.astype(kinds[k]) for k, v in inputs.items()})[pipeline.output]
