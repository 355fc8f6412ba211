"""What is wrong with a profile, before anything is built for it: each finding with its key and what to do. Pure.

    lint("raspberry-pi-4.toml", data)          # the findings, none for a sound profile

Whatever passes here can still be a bad idea; whatever does not would fail late, or claim what nobody saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from compiler.plan import known
from wire.document import Document
from wire.errors import WireError
from wire.profile import Profile, ProfileRuntime
from wire.units import size

_ARM: Final = (
    "fp asimd evtstrm aes pmull sha1 sha2 sha3 sha512 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop "
    "asimddp sve sve2 asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg i8mm svei8mm bf16 bti"
)
_FLAGS: Final = {
    "aarch64": _ARM,
    "arm64": _ARM,
    "armv7l": "neon vfp vfpv3 vfpv4 vfpd32 idiva idivt crc32 aes pmull sha1 sha2 lpae half thumb",
    "x86_64": (
        "sse2 ssse3 sse4_1 sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni "
        "avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16"
    ),
}
FEATURES: Final = {machine: frozenset(flags.split()) for machine, flags in _FLAGS.items()}
"""Flags as /proc/cpuinfo writes them: a misspelt one would silently choose other kernels."""
_SPELLING: Final = (
    "write it as /proc/cpuinfo does (on 64-bit ARM asimd, never neon; asimddp for dotprod; asimdhp for fp16)"
)
_FIGURES: Final = ("cpu", "core", "features", "memory", "accelerator", "gpu", "system", "python", "glibc")
_NOTHING: Final = ("", "none", ())


@dataclass(frozen=True)
class Finding:
    """`key` is the place in the file, "" for the file as a whole."""

    file: str
    key: str
    message: str


def lint(file: str, data: bytes) -> list[Finding]:
    """Everything that is wrong with a profile; a file that is no profile has one finding."""
    try:
        profile = Profile.from_toml(data)
    except WireError as e:
        return [Finding(file, "", f"{e}: correct it; nothing else was looked at")]
    checks = (_unknown, _name, _figures, _sources, _status, _features, _limits, _detect, _runtimes)
    return [Finding(file, key, message) for check in checks for key, message in check(profile, file)]


Found = Iterator[tuple[str, str]]


def _unknown(profile: Profile, file: str) -> Found:  # noqa: ARG001  every check takes the same
    parts: list[tuple[str, Document]] = [("", profile), ("hardware.", profile.hardware), ("detect.", profile.detect)]
    parts += [("limits.", profile.limits)]
    parts += [(f"runtimes.{r.name}.", r) for r in profile.runtimes]
    parts += [(f"sources[{i}].", s) for i, s in enumerate(profile.sources)]
    for where, part in parts:
        for key in part.extra:
            yield f"{where}{key}", "no program reads this key: correct its name, or remove it"


def _name(profile: Profile, file: str) -> Found:
    if file.removesuffix(".toml") != profile.name:
        yield "name", f"it is {profile.name!r} in the file {file}: give both the same name"
    names = [r.name for r in profile.runtimes]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"runtimes.{name}", "it stands twice: keep one"


def figures(profile: Profile) -> list[str]:
    """Keys that need a source."""
    told = [f"hardware.{key}" for key in _FIGURES if getattr(profile.hardware, key) not in _NOTHING]
    return [*told, "detect", *(f"runtimes.{r.name}" for r in profile.runtimes), "limits"]


def _figures(profile: Profile, file: str) -> Found:  # noqa: ARG001
    given = [s.figure for s in profile.sources]
    for key in figures(profile):
        if not any(key == figure or key.startswith(f"{figure}.") for figure in given):
            yield key, "no source: say in [[sources]] where the figure comes from, confirmed = false if from memory"


def _sources(profile: Profile, file: str) -> Found:  # noqa: ARG001
    known_keys = {*figures(profile), "hardware", "hardware.machine", "runtimes"}
    for source in profile.sources:
        if source.figure not in known_keys:
            yield f"sources.{source.figure}", "the profile has no such figure: name the key that the source speaks of"
        if not source.source.strip():
            yield f"sources.{source.figure}", "it names no source: say where the figure comes from"


def _status(profile: Profile, file: str) -> Found:  # noqa: ARG001
    seen = [r.name for r in profile.runtimes if r.seen_working]
    if profile.status == "supported" and not seen:
        yield "status", "no runtime was seen working: it is compile-only until one inference was seen"
    if profile.status == "compile-only" and seen:
        yield "status", f"{seen[0]} was seen working: it is supported, or seen_working is wrong"
    confirmed = {s.figure for s in profile.sources if s.confirmed}
    for name in seen:
        if f"runtimes.{name}" not in confirmed:
            yield f"runtimes.{name}.seen_working", "no confirmed source of its own says where it was seen: add one"


def _features(profile: Profile, file: str) -> Found:  # noqa: ARG001
    hardware = profile.hardware
    if hardware.machine not in FEATURES:
        yield "hardware.machine", f"{hardware.machine!r} is not known: one of {', '.join(sorted(FEATURES))}"
        return
    for feature in hardware.features:
        if feature not in FEATURES[hardware.machine]:
            yield "hardware.features", f"{feature!r} is no flag of {hardware.machine}: {_SPELLING}"


def _limits(profile: Profile, file: str) -> Found:  # noqa: ARG001
    if size(profile.limits.memory) >= size(profile.hardware.memory):
        yield "limits.memory", f"it is not below the {profile.hardware.memory} of the hardware: leave the system some"
    if profile.limits.store_bytes < size(profile.limits.disk):
        yield "limits.store", f"it is below the {profile.limits.disk} that one bundle may have: no such one would fit"


def _detect(profile: Profile, file: str) -> Found:  # noqa: ARG001
    if profile.hardware.machine not in profile.detect.machines:
        yield "detect.machines", f"{profile.hardware.machine} is not among them: the hardware would not be recognised"


def _runtimes(profile: Profile, file: str) -> Found:  # noqa: ARG001
    for runtime in profile.runtimes:
        yield from ((f"runtimes.{runtime.name}.{key}", message) for key, message in _runtime(runtime, profile))


def _runtime(runtime: ProfileRuntime, profile: Profile) -> Found:
    if not known.version(runtime.version):
        yield "version", f"{runtime.version!r} is no version: numbers with dots, such as 1.31.1"
        return
    fault = known.wheel_fault(runtime, profile.hardware)
    if fault:
        yield "version", f"{fault}: name a version, Python or system that fit each other"
    if runtime.name == "tensorrt" and not profile.hardware.gpu:
        yield "name", "TensorRT needs a GPU: give hardware.gpu, such as sm_87"
    yield from _graphs(runtime)


def _graphs(runtime: ProfileRuntime) -> Found:
    """Opset and IR: given where they apply, read by the version, and a pair that exists."""
    opset, ir = known.newest_opset(runtime), known.newest_ir(runtime)
    if opset is None:
        if runtime.opset or runtime.ir:
            yield "opset", f"{runtime.name} reads no ONNX: leave opset and ir out"
        return
    if runtime.opset not in known.FIRST_IR:
        yield "opset", f"{runtime.opset} is not known: {min(known.FIRST_IR)} to {max(known.FIRST_IR)}"
        return
    if runtime.opset > opset:
        yield "opset", f"{runtime.name} {runtime.version} reads {opset} at most: lower it"
    if ir is not None and runtime.ir > ir:
        yield "ir", f"{runtime.name} {runtime.version} reads {ir} at most: lower it"
    if runtime.ir < known.FIRST_IR[runtime.opset]:
        yield "ir", f"opset {runtime.opset} came with IR {known.FIRST_IR[runtime.opset]}: raise it, or lower the opset"
