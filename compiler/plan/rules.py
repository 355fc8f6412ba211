"""Which recipes a profile cannot have, said before any work: a rule's id and a sentence. Pure.

    refusal(RECIPES["tensorrt-int8"], profile, source, calibrated=True, workers=()).rule     # "int8-on-sm53"

A rule stands here when the pair was seen to fail, or cannot exist. What only might be worse is measured instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from compiler.passes.onnx_export import IR, OPSET
from compiler.plan import known
from compiler.plan.recipes import Recipe
from compiler.sources.source import TORCH_KINDS, Kind, Source
from wire.profile import Profile, ProfileRuntime

WORKERS: Final = ("tflite-runtime", "torchscript")
"""Runtimes with an environment of their own."""
_CONVERTERS: Final[dict[str, tuple[Kind, ...]]] = {
    "onnx.export": (*TORCH_KINDS, "onnx"),
    "litert.convert": ("huggingface", "torch-module", "tflite"),
    "torch.trace": TORCH_KINDS,
    "genai.fp32": ("huggingface",),
    "genai.int4": ("huggingface",),
    "gguf.take": ("gguf",),
}
_QUANTIZED: Final = ("int8", "uint8")
_SEVEN_BITS: Final = ("onnx.int8-dynamic", "onnx.int8-static")
"""Passes whose int8 products overflow on processors without instructions for them."""


@dataclass(frozen=True)
class Refusal:
    """Why a recipe is not tried."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Case:
    """What a rule looks at. `runtime` is the profile's, that the recipe ends in."""

    recipe: Recipe
    profile: Profile
    runtime: ProfileRuntime
    source: Source
    calibrated: bool
    workers: Collection[str]

    @property
    def version(self) -> known.Version:
        """That of the runtime."""
        return known.version(self.runtime.version)


Rule = Callable[[Case], str | None]
"""A sentence when it refuses."""


def refusal(
    recipe: Recipe, profile: Profile, source: Source, *, calibrated: bool, workers: Collection[str]
) -> Refusal | None:
    """The first rule that refuses a recipe for a profile, None when it may be tried."""
    runtime = profile.runtime(recipe.runtime)
    if runtime is None:
        return Refusal(NO_RUNTIME, f"the profile has no {recipe.runtime}")
    case = Case(recipe, profile, runtime, source, calibrated, workers)
    found = ((rule, refuses(case)) for rule, refuses in RULES.items())
    return next((Refusal(rule, reason) for rule, reason in found if reason is not None), None)


def parameters_for(recipe: Recipe, profile: Profile) -> tuple[dict[str, Any], ...]:
    """For each pass of a recipe the parameters that the profile decides: `opset` and `ir`; for the last one too the
    version of `tensorrt`, and whether weights of int8 get seven bits (`reduce_range`).

    A graph is no newer than the recipes need. A profile without the recipe's runtime is the caller's fault.
    """
    runtime = profile.runtime(recipe.runtime)
    assert runtime is not None
    if not recipe.passes[0].startswith("onnx."):
        return tuple({} for _ in recipe.passes)
    graph = {"opset": min(runtime.opset, OPSET), "ir": min(runtime.ir, IR)}
    return (*({**graph} for _ in recipe.passes[:-1]), {**graph, **_of_last(recipe, runtime, profile)})


def _of_last(recipe: Recipe, runtime: ProfileRuntime, profile: Profile) -> dict[str, Any]:
    if runtime.name == "tensorrt":
        return {"tensorrt": runtime.version}
    if recipe.passes[-1] in _SEVEN_BITS:
        return {"reduce_range": not {"avx512_vnni", "avx_vnni", "asimddp"} & set(profile.hardware.features)}
    return {}


# --- the rules --------------------------------------------------------------------------------------------------------


def _no_converter(case: Case) -> str | None:
    kinds = _CONVERTERS.get(case.recipe.passes[0])
    if kinds is None or case.source.kind in kinds:
        return None
    return f"there is no way from a source of kind {case.source.kind} to {case.runtime.name}"


def _another_task(case: Case) -> str | None:
    if case.recipe.generates == (case.source.task == "text-generation"):
        return None
    return f"{case.runtime.name} {'generates' if case.recipe.generates else 'does not generate'} text"


def _already_quantized(case: Case) -> str | None:
    outputs = case.source.outputs
    if case.source.kind != "tflite" or outputs[0].dtype not in _QUANTIZED or len(case.recipe.passes) == 1:
        return None
    return f"the source gives {outputs[0].dtype}: it is quantized already, and can only ship as it is"


def _no_wheel(case: Case) -> str | None:
    return known.wheel_fault(case.runtime, case.profile.hardware)


def _opset_too_new(case: Case) -> str | None:
    newest = known.newest_opset(case.runtime)
    if newest is None or case.runtime.opset <= newest:
        return None
    return f"{_named(case)} reads opset {newest}, the profile asks for {case.runtime.opset}"


def _ir_too_new(case: Case) -> str | None:
    newest = known.newest_ir(case.runtime)
    if newest is None or case.runtime.ir <= newest:
        return None
    return f"{_named(case)} reads IR {newest}, the profile asks for {case.runtime.ir}: it would not load"


def _illegal_instruction(case: Case) -> str | None:
    if case.runtime.name != "onnxruntime" or case.version != (1, 21, 0) or case.profile.hardware.core != "cortex-a72":
        return None
    return "onnxruntime 1.21.0 dies on a Cortex-A72 of an illegal instruction: take another version"


def _fp16_on_arm(case: Case) -> str | None:
    if (case.runtime.name, case.recipe.precision) != ("onnxruntime", "fp16"):
        return None
    if case.profile.hardware.machine not in ("aarch64", "arm64", "armv7l"):
        return None
    return "fp16 was four times slower than fp32 with ONNX Runtime on an ARM processor; int8 weights are smaller"


def _no_qdq_on_tensorrt(case: Case) -> str | None:
    made_for_others = [p for p in case.recipe.passes if p.startswith("onnx.int")]
    if case.runtime.name != "tensorrt" or not made_for_others:
        return None
    return "TensorRT's parser has no MatMulInteger, DynamicQuantizeLinear or MatMulNBits: int8 there is static, or not"


def _int8_on_sm53(case: Case) -> str | None:
    if case.runtime.name != "tensorrt" or case.recipe.precision != "int8" or case.profile.hardware.gpu != "sm_53":
        return None
    return "a GPU of sm_53 has no int8: take fp16"


def _layernorm_on_tensorrt(case: Case) -> str | None:
    old = case.runtime.name == "tensorrt" and case.version < (8, 6)
    if not old or case.source.text is None or case.runtime.opset < 17:
        return None
    return (
        f"from opset 17 on a graph of a text has LayerNormalization, which {_named(case)} lacks: give the profile's "
        "runtime an opset of 13"
    )


def _dynamic_int8_on_tflite(case: Case) -> str | None:
    if case.runtime.name != "tflite-runtime" or "litert.int8-dynamic" not in case.recipe.passes:
        return None
    return "tflite-runtime computes dynamic int8 per channel wrong, without an error"


def _static_text_on_tflite(case: Case) -> str | None:
    if case.runtime.name != "tflite-runtime" or "litert.int8-static" not in case.recipe.passes:
        return None
    if case.source.text is None:
        return None
    return "tflite-runtime computes static int8 of fully connected layers per channel wrong, without an error"


def _not_prunable(case: Case) -> str | None:
    loading = case.source.huggingface
    if case.recipe.keep == 1 or (loading is not None and loading.plain_bert):
        return None
    return "it prunes feed-forward blocks, and the source is no Hugging Face BERT encoder with pooling"


def _no_calibration(case: Case) -> str | None:
    if not case.recipe.calibrated or case.calibrated:
        return None
    return "it observes activations, or fits weights to them: give calibration examples"


def _no_worker(case: Case) -> str | None:
    if case.runtime.name not in WORKERS or case.runtime.name in case.workers:
        return None
    return f"{case.runtime.name} runs in an environment of its own: name its Python as a worker"


def _named(case: Case) -> str:
    return f"{case.runtime.name} {case.runtime.version}"


NO_RUNTIME: Final = "runtime-not-in-profile"
RULES: Final[dict[str, Rule]] = {
    "no-converter": _no_converter,
    "text-generation": _another_task,
    "already-quantized": _already_quantized,
    "no-wheel": _no_wheel,
    "opset-too-new": _opset_too_new,
    "ir-too-new": _ir_too_new,
    "onnxruntime-1.21.0-on-a72": _illegal_instruction,
    "fp16-on-arm-cpu": _fp16_on_arm,
    "dynamic-int8-on-tensorrt": _no_qdq_on_tensorrt,
    "int8-on-sm53": _int8_on_sm53,
    "layernorm-on-tensorrt": _layernorm_on_tensorrt,
    "per-channel-int8-on-tflite": _dynamic_int8_on_tflite,
    "static-int8-of-text-on-tflite": _static_text_on_tflite,
    "pruning-of-bert-only": _not_prunable,
    "no-calibration-data": _no_calibration,
    "no-worker": _no_worker,
}
"""By id, in the order in which they are asked, after `NO_RUNTIME`: what no user can change comes first."""
