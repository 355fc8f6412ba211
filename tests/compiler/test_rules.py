"""Every rule refuses what it is for, and only that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from compiler_process import profile

from compiler.errors import Incompatible
from compiler.plan.candidates import plan
from compiler.plan.recipes import RECIPES, Recipe
from compiler.plan.rules import NO_RUNTIME, RULES, WORKERS, parameters_for, refusal
from compiler.sources.source import HuggingFace, Source, Text
from wire.pipeline import TensorSpec
from wire.profile import Hardware, Profile, ProfileRuntime

NEWEST = {"onnxruntime": "1.31.1", "litert": "2.3.0", "tflite-runtime": "2.14.0", "torchscript": "2.13.0"}
IMAGE = Source(
    kind="torch-module",
    place="a.b:c",
    digest="sha256:" + "0" * 64,
    size=1,
    architecture="Net",
    task="image-classification",
    labels=("a", "b"),
    activation="softmax",
    inputs=(TensorSpec(name="input", dtype="float32", shape=(1, 3, 8, 8)),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(1, 2)),),
)
TEXT = replace(IMAGE, kind="huggingface", task="text-classification", text=Text(b"{}", 128, ("input_ids",)))
BERT = replace(TEXT, huggingface=HuggingFace({"model_type": "bert"}, "mean"))
ROBERTA = replace(TEXT, huggingface=HuggingFace({"model_type": "roberta"}, "mean"))
ONNX, SCRIPT, FLAT = (replace(IMAGE, kind=kind) for kind in ("onnx", "torchscript", "tflite"))
TALK = replace(TEXT, task="text-generation", text=None)
GGUF = replace(TALK, kind="gguf")
BYTES = (TensorSpec(name="output", dtype="uint8", shape=(1, 2)),)


def where(
    *,
    version: str = "",
    runtime: str = "onnxruntime",
    opset: int = 0,
    ir: int = 0,
    machine: str = "x86_64",
    python: str = "3.11",
    glibc: str = "2.36",
    **hardware: Any,
) -> Profile:
    graph = {"opset": opset or 17, "ir": ir or 8} if runtime in ("onnxruntime", "tensorrt") else {}
    given: Any = runtime
    return profile(
        hardware=Hardware(
            **{"machine": machine, "cpu": "any", "features": (), "memory": "1 GiB", "python": python, "glibc": glibc}
            | hardware
        ),
        runtimes=(ProfileRuntime(name=given, version=version or NEWEST.get(runtime, "10.3"), **graph),),
    )


def ask(
    recipe: str | Recipe,
    profile: Profile,
    source: Source = IMAGE,
    *,
    calibrated: bool = True,
    workers: Collection[str] = WORKERS,
) -> str | None:
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    found = refusal(chosen, profile, source, calibrated=calibrated, workers=workers)
    assert found is None or len(found.reason) > 20
    return found and found.rule


TFLITE_DYNAMIC = Recipe("d", "tflite-runtime", "int8", ("litert.convert", "litert.int8-dynamic"), 0.05)
TENSORRT_DYNAMIC = Recipe("t", "tensorrt", "int8", ("onnx.export", "onnx.prepare", "onnx.int8-dynamic"), 0.05)
TENSORRT_WEIGHTS = Recipe("w", "tensorrt", "int8", ("onnx.export", "onnx.prepare", "onnx.int8-weights"), 0.05)
LITERT, TFLITE, TORCH = (where(runtime=name) for name in ("litert", "tflite-runtime", "torchscript"))
GENAI = where(runtime="onnxruntime-genai", version="0.18.0")
ORIN = where(runtime="tensorrt", machine="aarch64", gpu="sm_87")
NANO = where(runtime="tensorrt", version="8.2.1", opset=13, machine="aarch64", gpu="sm_53", python="3.6", glibc="2.27")
A72 = {"machine": "aarch64", "core": "cortex-a72"}

# rule, what it refuses, what is nearest to that and may be tried
TABLE: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]] = [
    (NO_RUNTIME, ("litert-fp32", where()), ("onnx-fp32", where())),
    ("no-converter", ("litert-fp32", LITERT, ONNX), ("onnx-fp32", where(), ONNX)),
    ("no-converter", ("litert-fp32", LITERT, SCRIPT), ("litert-fp32", LITERT)),
    ("no-converter", ("onnx-fp32", where(), FLAT), ("litert-fp32", LITERT, FLAT)),
    ("no-converter", ("torchscript-fp32", TORCH, ONNX), ("torchscript-fp32", TORCH)),
    ("text-generation", ("genai-int4", GENAI, TEXT), ("genai-int4", GENAI, TALK)),
    ("text-generation", ("onnx-fp32", where(), TALK), ("onnx-fp32", where(), TEXT)),
    ("no-converter", ("genai-int4", GENAI, GGUF), ("gguf", where(runtime="gguf", version="2026.10.1"), GGUF)),
    (
        "no-wheel",
        ("genai-int4", where(runtime="onnxruntime-genai", version="0.18.0", python="3.10"), TALK),
        ("gguf", where(runtime="gguf", version="2026.10.1", python="3.10"), GGUF),
    ),
    (
        "already-quantized",
        ("litert-int8-weights", LITERT, replace(FLAT, outputs=BYTES)),
        ("litert-fp32", LITERT, replace(FLAT, outputs=BYTES)),
    ),
    (
        "no-wheel",
        ("onnx-fp32", where(machine="armv7l")),
        ("tflite-fp32", where(runtime="tflite-runtime", machine="armv7l")),
    ),
    ("no-wheel", ("onnx-fp32", where(python="3.10")), ("onnx-fp32", where(python="3.13"))),
    ("no-wheel", ("onnx-fp32", where(glibc="2.27")), ("onnx-fp32", where(glibc="2.28"))),
    ("no-wheel", ("tflite-fp32", where(runtime="tflite-runtime", python="3.13")), ("tflite-fp32", TFLITE)),
    ("no-wheel", ("onnx-fp32", where(version="99.0")), ("onnx-fp32", where(version="99.0", python="", opset=13, ir=7))),
    (
        "opset-too-new",
        ("onnx-fp32", where(version="1.18.0", opset=22)),
        ("onnx-fp32", where(version="1.18.0", opset=21)),
    ),
    ("opset-too-new", ("tensorrt-fp16", where(runtime="tensorrt", version="8.2.1")), ("tensorrt-fp16", NANO, TEXT)),
    ("ir-too-new", ("onnx-fp32", where(version="1.18.0", ir=11)), ("onnx-fp32", where(version="1.18.0", ir=10))),
    (
        "onnxruntime-1.21.0-on-a72",
        ("onnx-fp32", where(version="1.21.0", **A72)),
        ("onnx-fp32", where(version="1.21.1", **A72)),
    ),
    ("fp16-on-arm-cpu", ("onnx-fp16", where(**A72)), ("onnx-fp16", where())),
    ("dynamic-int8-on-tensorrt", (TENSORRT_DYNAMIC, ORIN), ("tensorrt-int8", ORIN)),
    ("dynamic-int8-on-tensorrt", (TENSORRT_WEIGHTS, ORIN), ("tensorrt-fp16", ORIN)),
    ("int8-on-sm53", ("tensorrt-int8", NANO), ("tensorrt-fp16", NANO)),
    (
        "layernorm-on-tensorrt",
        ("tensorrt-fp16", where(runtime="tensorrt", version="8.5"), TEXT),
        ("tensorrt-fp16", where(runtime="tensorrt", version="8.6"), TEXT),
    ),
    ("per-channel-int8-on-tflite", (TFLITE_DYNAMIC, TFLITE), ("litert-int8-dynamic", LITERT)),
    ("static-int8-of-text-on-tflite", ("tflite-int8-static", TFLITE, TEXT), ("tflite-int8-static", TFLITE)),
    ("pruning-of-bert-only", ("onnx-int8-dynamic-half", where(), ROBERTA), ("onnx-int8-dynamic", where(), ROBERTA)),
    ("pruning-of-bert-only", ("litert-int8-dynamic-half", LITERT), ("litert-int8-dynamic-half", LITERT, BERT)),
]


@pytest.mark.parametrize(("rule", "refused", "tried"), TABLE)
def test_a_rule_refuses_what_it_is_for_and_lets_its_neighbour_pass(
    rule: str, refused: tuple[Any, ...], tried: tuple[Any, ...]
) -> None:
    assert ask(*refused) == rule
    assert ask(*tried) is None


def test_a_recipe_that_observes_or_fits_needs_calibration_examples() -> None:
    assert ask("onnx-int8-static", where(), calibrated=False) == "no-calibration-data"
    assert ask("onnx-int8-static", where(), calibrated=True) is None
    assert ask("onnx-int8-dynamic-half", where(), BERT, calibrated=False) == "no-calibration-data"
    assert ask("onnx-int8-dynamic", where(), calibrated=False) is None


def test_a_runtime_of_another_environment_needs_its_python() -> None:
    assert ask("tflite-fp32", TFLITE, workers=("torchscript",)) == "no-worker"
    assert ask("tflite-fp32", TFLITE, workers=("tflite-runtime",)) is None
    assert ask("litert-fp32", LITERT, workers=()) is None


def test_every_rule_is_tested_here() -> None:
    assert {rule for rule, _, _ in TABLE} | {"no-calibration-data", "no-worker"} == {NO_RUNTIME, *RULES}


def test_of_several_rules_the_same_one_is_named_each_time() -> None:
    assert ask("onnx-fp16", where(machine="armv7l"), FLAT) == "no-converter"


@pytest.mark.parametrize(
    ("features", "machine", "seven_bits"),
    [
        (("avx2",), "x86_64", True),
        (("avx2", "avx512_vnni"), "x86_64", False),
        (("asimd",), "aarch64", True),
        (("asimd", "asimddp"), "aarch64", False),
    ],
)
def test_weights_get_seven_bits_where_eight_overflow(features: tuple[str, ...], machine: str, seven_bits: bool) -> None:
    made = parameters_for(RECIPES["onnx-int8-dynamic"], where(machine=machine, features=features))
    assert made == ({"opset": 17, "ir": 8}, {"opset": 17, "ir": 8}, {"opset": 17, "ir": 8, "reduce_range": seven_bits})


def test_a_graph_is_never_newer_than_the_recipes_need_nor_than_its_runtime_reads() -> None:
    newer = parameters_for(RECIPES["onnx-fp32"], where(opset=21, ir=10))
    assert newer == ({"opset": 17, "ir": 8},)
    assert parameters_for(RECIPES["tensorrt-fp16"], NANO)[-1] == {"opset": 13, "ir": 8, "tensorrt": "8.2.1"}
    assert parameters_for(RECIPES["litert-fp16"], LITERT) == ({}, {})


def test_a_profile_whose_rules_refuse_every_recipe_says_to_leave_it_out() -> None:
    board = where(runtime="litert")
    with pytest.raises(Incompatible, match=r"profile board: its rules refuse every recipe: .*; leave this profile out"):
        plan(board, IMAGE, (), recipes=("onnx-fp32",), calibrated=False, workers=())
