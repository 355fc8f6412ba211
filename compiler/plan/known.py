"""What is known of runtimes: where there are wheels, which graphs a version reads. Tables, and how to ask them.

A wheel stands here once a package index was seen to offer it for that Python and platform. What ONNX Runtime reads is
from its table of compatibility, the last row was asked of the runtime itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from compiler.passes.tensorrt import NEWEST_OPSET
from wire.bundle import Runtime
from wire.profile import Hardware, ProfileRuntime

Version = tuple[int, ...]

BROUGHT: Final = ("tensorrt",)
"""Runtimes that a system brings itself: no wheel is asked for."""
NO_GRAPH_VERSION: Final = ("litert", "tflite-runtime", "torchscript", "onnxruntime-genai", "gguf")
"""Runtimes whose files know neither opset nor IR."""


@dataclass(frozen=True)
class Wheel:
    """Wheels of a runtime for one `machine`: its versions, Pythons and the oldest glibc, first and last included."""

    runtime: Runtime
    machine: str
    versions: tuple[str, str]
    pythons: tuple[str, str]
    glibc: str


WHEELS: Final = (
    *(Wheel("onnxruntime", m, ("1.31", "1.31"), ("3.14", "3.14"), "2.28") for m in ("aarch64", "x86_64")),
    *(Wheel("onnxruntime", m, ("1.20", "1.32"), ("3.11", "3.13"), "2.28") for m in ("aarch64", "x86_64")),
    *(Wheel("onnxruntime", m, ("1.17", "1.19"), ("3.11", "3.12"), "2.28") for m in ("aarch64", "x86_64")),
    Wheel("onnxruntime", "aarch64", ("1.17", "1.23"), ("3.10", "3.10"), "2.28"),
    Wheel("litert", "aarch64", ("2.3", "2.3"), ("3.10", "3.14"), "2.27"),
    Wheel("litert", "aarch64", ("1.1", "2.2"), ("3.11", "3.11"), "2.28"),
    Wheel("litert", "x86_64", ("2.3", "2.3"), ("3.10", "3.14"), "2.27"),
    Wheel("tflite-runtime", "aarch64", ("2.14", "2.14"), ("3.9", "3.11"), "2.34"),
    Wheel("tflite-runtime", "armv7l", ("2.14", "2.14"), ("3.9", "3.11"), "2.34"),
    Wheel("tflite-runtime", "x86_64", ("2.14", "2.14"), ("3.9", "3.11"), "2.17"),
    *(Wheel("onnxruntime-genai", m, ("0.18", "0.18"), ("3.11", "3.13"), "2.28") for m in ("aarch64", "x86_64")),
    *(Wheel("gguf", m, ("2026.10", "2026.10"), ("3.10", "3.14"), "2.17") for m in ("aarch64", "x86_64")),
    Wheel("torchscript", "aarch64", ("2.13", "2.13"), ("3.10", "3.14"), "2.28"),
    Wheel("torchscript", "x86_64", ("2.13", "2.13"), ("3.10", "3.14"), "2.28"),
)
ONNXRUNTIME: Final[Mapping[Version, tuple[int, int]]] = {
    (1, 6): (13, 7),
    (1, 8): (14, 7),
    (1, 9): (15, 8),
    (1, 11): (16, 8),
    (1, 12): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 8),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 31): (26, 13),
}
"""Newest opset and IR that ONNX Runtime reads, from that version on; between the last two rows at least the former."""
FIRST_IR: Final[Mapping[int, int]] = {
    **dict.fromkeys((13, 14), 7),
    **dict.fromkeys((15, 16, 17, 18), 8),
    **dict.fromkeys((19, 20), 9),
    **dict.fromkeys((21, 22), 10),
    23: 11,
    24: 12,
    **dict.fromkeys((25, 26), 13),
}
"""The IR that each opset came with (the table of versions of ONNX)."""


def version(text: str) -> Version:
    """`1.31.1` as (1, 31, 1); empty for what is none."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d{1,5}(\.\d{1,5}){0,3}", text) else ()


def wheel_fault(runtime: ProfileRuntime, hardware: Hardware) -> str | None:
    """Why no wheel of a runtime is known for a system, None when there is one, or where no Python asks for one."""
    if runtime.name in BROUGHT or not hardware.python:
        return None
    rows = [w for w in WHEELS if (w.runtime, w.machine) == (runtime.name, hardware.machine)]
    if not rows:
        return f"no wheel of {runtime.name} is known for {hardware.machine}"
    rows = [w for w in rows if _within(runtime.version, w.versions)]
    if not rows:
        return f"no wheel of {runtime.name} {runtime.version} is known for {hardware.machine}"
    rows = [w for w in rows if _within(hardware.python, w.pythons)]
    if not rows:
        return f"no wheel of {runtime.name} {runtime.version} is known for Python {hardware.python}"
    needed = min(rows, key=lambda w: version(w.glibc)).glibc
    if hardware.glibc and version(hardware.glibc) < version(needed):
        return f"the wheel of {runtime.name} {runtime.version} needs glibc {needed}, there is {hardware.glibc}"
    return None


def newest_opset(runtime: ProfileRuntime) -> int | None:
    """The newest opset that a version of ONNX Runtime or TensorRT is known to read, 0 for an unknown old version.

    None for runtimes of other files.
    """
    if runtime.name in NO_GRAPH_VERSION:
        return None
    if runtime.name == "tensorrt":
        return _newest(runtime.version, {(*since,): opset for since, opset in NEWEST_OPSET.items()})
    return _newest(runtime.version, {since: opset for since, (opset, _) in ONNXRUNTIME.items()})


def newest_ir(runtime: ProfileRuntime) -> int | None:
    """The newest IR that a version of ONNX Runtime is known to read; None for the others, TensorRT's parser too."""
    if runtime.name != "onnxruntime":
        return None
    return _newest(runtime.version, {v: ir for v, (_, ir) in ONNXRUNTIME.items()})


def _newest(text: str, table: Mapping[Version, int]) -> int:
    return max((number for since, number in table.items() if since <= version(text)), default=0)


def _within(text: str, ends: tuple[str, str]) -> bool:
    """Whether a version lies between two, of which only major and minor count."""
    first, last = map(version, ends)
    return first <= version(text)[:2] <= last
