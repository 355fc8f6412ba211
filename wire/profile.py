"""A profile: one hardware class, read from one TOML file.

profile = Profile.from_toml(data)
profile.runtimes       # what can serve there; the compiler tries every recipe that its rules allow
profile.matches(machine="aarch64", board="Raspberry Pi 4 Model B Rev 1.4")
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Literal

from wire.bundle import Runtime
from wire.document import Document, check_name
from wire.errors import Malformed
from wire.units import size

Minimise = Literal["latency", "size", "memory"]


@dataclass(frozen=True, kw_only=True)
class Hardware(Document):
    """`memory` is that of the smallest board of the class; `features` are the CPU flags that decide kernels.

    `core` is the kind of core that decides kernels (`cortex-a72`), `gpu` the compute capability (`sm_87`), each ""
    where there is none; `system` the operating system, and as far as wheels depend on them its `python` such as "3.11",
    "" where none runs, and its C library `glibc` such as "2.36".
    """

    machine: str
    cpu: str
    core: str = ""
    features: tuple[str, ...]
    memory: str
    accelerator: str = "none"
    gpu: str = ""
    system: str = ""
    python: str = ""
    glibc: str = ""


@dataclass(frozen=True, kw_only=True)
class Detect(Document):
    """How an agent knows this hardware: `uname -m`, and the start of the device-tree model if there is one."""

    machines: tuple[str, ...]
    boards: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProfileRuntime(Document):
    """A runtime of the profile, its newest supported ONNX opset and IR (0 where it does not apply).

    `seen_working` only where an inference was really seen there: on the hardware, or with the same instructions
    emulated. A variant for a runtime that was not is `compile-only`.
    """

    name: Runtime
    version: str
    opset: int = 0
    ir: int = 0
    seen_working: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits(Document):
    """What models may cost on the device, with units.

    A build holds a bundle to `disk`. Memory depends on the device's runtime, so no build can promise `memory`: it is
    what the class has room for, all models of a device together. `store` is what all of them may take of its disk,
    with what stands in their slots; "" is three times `disk`: active, previous and what is coming.
    """

    disk: str
    memory: str
    store: str = ""

    @property
    def store_bytes(self) -> int:
        """Bytes of disk for all models."""
        return size(self.store, where="limits.store") if self.store else 3 * size(self.disk, where="limits.disk")

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory for all models."""
        return size(self.memory, where="limits.memory")


@dataclass(frozen=True, kw_only=True)
class Source(Document):
    """Where a figure comes from; `confirmed = false` where it is only remembered."""

    figure: str
    source: str
    confirmed: bool


@dataclass(frozen=True, kw_only=True)
class Profile(Document):
    """One hardware class.

    `status` is `supported` only where a runtime was seen working. `minimise` is what the compiler makes small, among
    the variants that hold the limits, unless a build asks for something else.
    """

    name: str
    title: str
    status: Literal["supported", "compile-only"]
    hardware: Hardware
    detect: Detect
    runtimes: tuple[ProfileRuntime, ...]
    minimise: Minimise = "latency"
    limits: Limits
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "profile.name")
        for where, text in (
            ("profile.hardware.memory", self.hardware.memory),
            ("profile.limits.disk", self.limits.disk),
            ("profile.limits.memory", self.limits.memory),
            ("profile.limits.store", self.limits.store or self.limits.disk),
        ):
            size(text, where=where)
        if not self.runtimes:
            raise Malformed(f"profile {self.name}: needs at least one runtime")

    def runtime(self, name: str) -> ProfileRuntime | None:
        """The runtime of that name, if the profile has it."""
        return next((r for r in self.runtimes if r.name == name), None)

    def compile_only(self, runtime: str) -> bool:
        """Whether that runtime was never seen working on this hardware: what is compiled for it is not proven there."""
        known = self.runtime(runtime)
        return self.status == "compile-only" or known is None or not known.seen_working

    @classmethod
    def from_toml(cls, data: bytes) -> Profile:
        """Raises `Malformed` for bad TOML, a missing field or a wrong unit."""
        try:
            return cls.from_value(tomllib.loads(data.decode()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"profile: not valid TOML: {e}") from e

    def matches(self, *, machine: str, board: str) -> bool:
        """Whether a machine (`uname -m`) and board (device-tree model, or "") are of this class."""
        boards = self.detect.boards
        return machine in self.detect.machines and (not boards or any(board.startswith(b) for b in boards))
