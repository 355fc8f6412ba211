"""Evidence made by hand, with everything that a report shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wire.bundle import BundleConfig, BundleFile, BundleManifest
from wire.evidence import Attempt, ClassChange, Decision, Evidence, Kind, Measurement, Sabotage, Wanted
from wire.lineage import Dataset

DIGESTS = ["sha256:" + f"{i:x}" * 64 for i in range(10)]
DEVICE = "Intel Xeon (x86_64)"


def figures(accuracy: float, ms: float, size: float, drop: float, kind: Kind = "emulated") -> tuple[Measurement, ...]:
    """What is measured of a candidate."""
    on: Any = {"kind": kind, "device": DEVICE, "runtime": "onnxruntime 1.31.1"}
    told = {"doubts": ["other work took 12 % of the processor"]} if kind == "measured" else {}
    p50 = Measurement(metric="latency_p50", value=ms, unit="ms", n=200, low=ms * 0.97, high=ms * 1.05, extra=told, **on)
    return (
        Measurement(
            metric="accuracy", value=accuracy, unit="fraction", n=1995, low=accuracy - 0.01, high=accuracy + 0.01, **on
        ),
        Measurement(metric="source_accuracy", value=0.956, unit="fraction", n=1995, low=0.946, high=0.964, **on),
        Measurement(metric="drop", value=drop, unit="points", n=1995, low=drop - 0.4, high=drop + 0.4, **on),
        p50,
        replace(p50, metric="latency_p99", value=ms * 1.4, low=ms * 1.3, high=ms * 2),
        Measurement(metric="size", value=size, unit="byte", n=1, kind="measured"),
        Measurement(metric="footprint", value=size + 800_000, unit="byte", n=1, kind="measured"),
        Measurement(metric="source_size", value=90_900_000, unit="byte", n=1, kind="measured"),
        Measurement(metric="memory", value=size * 1.4, unit="byte", n=1, **on),
    )


def evidence(kind: Kind = "emulated", profile: str = "raspberry-pi-4", **changes: Any) -> Evidence:
    """A search with every outcome. Names that come from outside hold markup."""
    tried = (
        ("onnx-int8-dynamic", "chosen", "holds every limit with the smallest latency", 0.9536, 10.2, 23.1e6, 0.24),
        ("onnx-fp32", "pass", "29.31 ms, onnx-int8-dynamic takes 10.20", 0.956, 29.31, 90.7e6, 0.0),
        ("onnx-fp16", "pass", "41.00 ms, onnx-int8-dynamic takes 10.20", 0.956, 41.0, 45.5e6, 0.0),
        ("onnx-int8-weights", "pass", "30.80 ms, onnx-int8-dynamic takes 10.20", 0.9557, 30.8, 24.0e6, 0.03),
        ("onnx-int4-weights", "inconclusive", "1995 examples do not decide that", 0.9491, 33.0, 31.2e6, 0.69),
        ("litert-int8-dynamic", "fail", "accuracy drops by 1.90 points", 0.937, 9.1, 23.0e6, 1.9),
        ("litert-fp32", "pass", "33.70 ms, onnx-int8-dynamic takes 10.20", 0.956, 33.7, 90.8e6, 0.0),
        ("onnx-int8-static", "fail", "accuracy drops by 31.20 points", 0.644, 12.0, 23.2e6, 31.2),
    )
    attempts = tuple(
        Attempt(
            recipe=recipe,
            outcome=outcome,  # type: ignore[arg-type]
            reason=reason,
            runtime="litert" if recipe.startswith("litert") else "onnxruntime",
            precision=recipe.split("-")[1],
            measurements=figures(accuracy, ms, size, drop, kind),
            kept_float=("layer.0", "head") if recipe == "litert-int8-dynamic" else (),
            fell_back={"Softmax": 6, "LayerNorm": 13} if "int8-dynamic" in recipe else {},
        )
        for recipe, outcome, reason, accuracy, ms, size, drop in tried
    )
    refused = Attempt(recipe="tensorrt-int8", outcome="refused", reason="the profile has no tensorrt", rule="runtime")
    broken = Attempt(recipe="litert-fp16", outcome="broken", reason="it crashed: <b>signal</b> | 11")
    found = Evidence(
        subject=DIGESTS[1],
        target=f"models/intents/home/1.0.0/{profile}",
        task="text-classification",
        recipe="onnx-int8-dynamic",
        runtime="onnxruntime",
        precision="int8",
        source=DIGESTS[2],
        architecture="BertForSequenceClassification",
        tools={"torch": "2.13.0", "onnxruntime": "1.31.1", "litert-torch": "absent"},
        datasets=(
            Dataset(name="held-out.jsonl", digest=DIGESTS[3], use="test", rows=1995, licence="CC-BY-4.0"),
            Dataset(name="calibration.jsonl", digest=DIGESTS[4], use="calibration", rows=200),
        ),
        wanted=Wanted(max_drop=1.0, max_ms=50.0, max_mb=0.0, minimise="latency", confidence=0.95),
        decision=Decision(
            metric="accuracy",
            max_drop=1.0,
            confidence=0.95,
            n=1995,
            needed=2600,
            changed_planned=0.04,
            drop=0.24,
            low=-0.16,
            high=0.64,
            outcome="pass",
        ),
        measurements=attempts[0].measurements,
        attempts=(*attempts, broken, refused),
        classes=(
            ClassChange(label="HassTurnOn", n=400, source=390, variant=380, both=379),
            ClassChange(label="<script>alert(1)</script>", n=300, source=280, variant=285, both=279),
            ClassChange(label="HassGetState", n=1295, source=1237, variant=1237, both=1237),
        ),
        sabotage=(
            Sabotage(
                name="scrambled weights", golden="golden case 0: scores off by 0.9", accuracy="drops by 92 points"
            ),
        ),
    )
    return replace(found, **changes)


def manifest(profile: str = "raspberry-pi-4") -> BundleManifest:
    """The manifest that the evidence is about."""
    return BundleManifest(
        family="intents",
        name="home",
        version="1.0.0",
        profile=profile,
        runtime="onnxruntime",
        precision="int8",
        config=BundleConfig(digest=DIGESTS[5], size=2),
        files=(
            BundleFile(role="labels", path="labels.json", digest=DIGESTS[6], size=20),
            BundleFile(role="model", path="model.onnx", digest=DIGESTS[7], size=2_000),
        ),
        annotations={},
    )
