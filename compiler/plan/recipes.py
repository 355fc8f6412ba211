"""The recipes: each a list of passes by name, with the runtime and precision they end in.

The first pass of a recipe makes an fp32 graph of the source, each further one a file of the file before; recipes that
begin alike share their beginning. Which of them a profile allows is decided by `compiler.plan.rules`, which of those
is best by measuring.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.bundle import LANGUAGE_RUNTIMES, Precision, Runtime

MODEL_FILES: dict[Runtime, str] = {
    "onnxruntime": "model.onnx",
    "litert": "model.tflite",
    "tflite-runtime": "model.tflite",
    "torchscript": "model.pt",
    "tensorrt": "model.onnx",
    "onnxruntime-genai": "model.onnx",
    "gguf": "model.gguf",
}


@dataclass(frozen=True)
class Recipe:
    """`tolerance` is how far an output may be off on another processor of the profile, as a share of its range.

    Measured between x86-64 and ARM: fp32 differs by 1e-7, dynamic int8 by up to 0.008 in the scores; the
    tolerances leave room for other kernels and stay far below what a broken model shows. `calibrated`: a pass observes
    activations on calibration examples, or fits weights to them. `mixed`: its last pass takes `keep_float`. `keep`: the
    share of the neurons of each feed-forward block that the first pass leaves.
    """

    name: str
    runtime: Runtime
    precision: Precision
    passes: tuple[str, ...]
    tolerance: float
    calibrated: bool = False
    mixed: bool = False
    keep: float = 1.0

    @property
    def generates(self) -> bool:
        """Whether it makes a language model."""
        return self.runtime in LANGUAGE_RUNTIMES


LOGPROB = 0.25
"""What a language model's log probabilities may be off on another processor; of those no ARM was measured."""
_EXPORT, _PREPARE, _CONVERT = "onnx.export", "onnx.prepare", "litert.convert"
_ALL = (
    Recipe("onnx-fp32", "onnxruntime", "fp32", (_EXPORT,), 0.005),
    Recipe("onnx-fp16", "onnxruntime", "fp16", (_EXPORT, _PREPARE, "onnx.fp16"), 0.01),
    Recipe("onnx-int8-dynamic", "onnxruntime", "int8", (_EXPORT, _PREPARE, "onnx.int8-dynamic"), 0.05, mixed=True),
    Recipe(
        *("onnx-int8-static", "onnxruntime", "int8", (_EXPORT, _PREPARE, "onnx.int8-static"), 0.05),
        calibrated=True,
        mixed=True,
    ),
    Recipe("onnx-int8-weights", "onnxruntime", "int8", (_EXPORT, _PREPARE, "onnx.int8-weights"), 0.02, mixed=True),
    Recipe("onnx-int4-weights", "onnxruntime", "int4", (_EXPORT, _PREPARE, "onnx.int4-weights"), 0.02, mixed=True),
    # Not `mixed`: what pruning costs comes back with no layer in float.
    Recipe(
        *("onnx-int8-dynamic-half", "onnxruntime", "int8", (_EXPORT, _PREPARE, "onnx.int8-dynamic"), 0.05),
        calibrated=True,
        keep=0.5,
    ),
    Recipe("tensorrt-fp16", "tensorrt", "fp32", (_EXPORT, _PREPARE, "tensorrt.ready"), 0.02),
    Recipe(
        *("tensorrt-int8", "tensorrt", "int8", (_EXPORT, _PREPARE, "tensorrt.int8-static"), 0.05),
        calibrated=True,
        mixed=True,
    ),
    Recipe("litert-fp32", "litert", "fp32", (_CONVERT,), 0.005),
    Recipe("litert-fp16", "litert", "fp16", (_CONVERT, "litert.fp16"), 0.01),
    Recipe("litert-int8-weights", "litert", "int8", (_CONVERT, "litert.int8-weights"), 0.02, mixed=True),
    Recipe("litert-int8-dynamic", "litert", "int8", (_CONVERT, "litert.int8-dynamic"), 0.05, mixed=True),
    Recipe(
        *("litert-int8-dynamic-half", "litert", "int8", (_CONVERT, "litert.int8-dynamic"), 0.05),
        calibrated=True,
        keep=0.5,
    ),
    Recipe(
        *("litert-int8-dynamic-quarter", "litert", "int8", (_CONVERT, "litert.int8-dynamic"), 0.05),
        calibrated=True,
        keep=0.25,
    ),
    Recipe(
        *("litert-int8-static", "litert", "int8", (_CONVERT, "litert.int8-static"), 0.05), calibrated=True, mixed=True
    ),
    Recipe("tflite-fp32", "tflite-runtime", "fp32", (_CONVERT,), 0.005),
    Recipe("tflite-fp16", "tflite-runtime", "fp16", (_CONVERT, "litert.fp16"), 0.01),
    Recipe("tflite-int8-weights", "tflite-runtime", "int8", (_CONVERT, "litert.int8-weights"), 0.02, mixed=True),
    Recipe(
        *("tflite-int8-static", "tflite-runtime", "int8", (_CONVERT, "litert.int8-static"), 0.05),
        calibrated=True,
        mixed=True,
    ),
    Recipe("torchscript-fp32", "torchscript", "fp32", ("torch.trace",), 0.005),
    Recipe("genai-fp32", "onnxruntime-genai", "fp32", ("genai.fp32",), LOGPROB),
    Recipe("genai-int4", "onnxruntime-genai", "int4", ("genai.int4",), LOGPROB),
    # In whatever precision it came: its bundle says which, by the bits of a weight.
    Recipe("gguf", "gguf", "int4", ("gguf.take",), LOGPROB),
)
RECIPES = {recipe.name: recipe for recipe in _ALL}
