"""What machine this is, which profile fits it, and which runtimes really work on it.

A runtime's list of providers says how it was built; only one inference proves that it runs here, and it may die of an
illegal instruction, so each has a process of its own.
"""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wire.profile import Profile
from wire.units import show_size, size

PROGRAM = Path(__file__).with_name("probe_program.py")
LONGEST = 120.0
"""Seconds that one inference may take, with the import of its runtime."""
_SPARE = 0.75
"""The least share of a profile's memory that a board of its class reports: firmware and GPU keep some."""


@dataclass(frozen=True)
class Here:
    """This machine. `board` and `compatible` are the device tree's, "" and empty without one; `memory` in bytes.

    `jetson` is the release of Jetson Linux, such as "R36", "" elsewhere.
    """

    board: str
    compatible: tuple[str, ...]
    jetson: str
    machine: str
    cpu: str
    features: frozenset[str]
    memory: int
    python: str
    glibc: str


@dataclass(frozen=True)
class Probe:
    """One inference. `works` is None where none was tried; `told` is the package and version, or the reason."""

    runtime: str
    works: bool | None
    told: str


def look(root: Path = Path("/")) -> Here:
    """Read what the kernel says."""
    from agent.life import hardware  # noqa: PLC0415  the agent's own eyes; the other commands need no agent

    machine = hardware.detect(root)
    cpuinfo = _text(root / "proc/cpuinfo")
    return Here(
        board=machine.board,
        compatible=tuple(part for part in _text(root / "proc/device-tree/compatible").split("\0") if part),
        jetson=_text(root / "etc/nv_tegra_release").lstrip("# ").partition(" ")[0],
        machine=machine.machine,
        cpu=machine.cpu,
        features=frozenset(_field(cpuinfo, "Features" if "Features" in cpuinfo else "flags").split()),
        memory=int(_field(_text(root / "proc/meminfo"), "MemTotal").partition(" ")[0] or 0) * 1024,
        python=".".join(platform.python_version_tuple()[:2]),
        glibc=platform.libc_ver()[1],
    )


def differences(profile: Profile, here: Here) -> list[str]:
    """What keeps this machine from being of a profile; empty when it fits. Another board says it all."""
    hardware = profile.hardware
    if not profile.matches(machine=here.machine, board=here.board):
        wanted = " or ".join(profile.detect.boards or profile.detect.machines)
        return [f"it is for {wanted}, this is {here.board or here.machine}"]
    found = []
    if missing := sorted(set(hardware.features) - here.features):
        found.append(f"this processor lacks {', '.join(missing)}")
    if here.memory < size(hardware.memory) * _SPARE:
        found.append(f"it is for {hardware.memory} of memory, this has {show_size(here.memory)}")
    return found


def probe(profile: Profile, pythons: Mapping[str, str]) -> list[Probe]:
    """One inference of every runtime of a profile. `pythons`: of a runtime with an environment of its own, by name."""
    return [_probe(runtime.name, pythons.get(runtime.name, sys.executable)) for runtime in profile.runtimes]


def _probe(runtime: str, python: str) -> Probe:
    if runtime == "tensorrt":
        return Probe(runtime, None, "not tried: an engine is built from the model itself")
    try:
        # -I: neither this folder nor the user's settings decide which runtime is found.
        done = subprocess.run(
            [python, "-I", str(PROGRAM), runtime], capture_output=True, text=True, check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return Probe(runtime, works=False, told=f"no answer within {LONGEST:.0f} s")
    except OSError as e:
        return Probe(runtime, works=False, told=f"{python} does not start: {e.strerror}")
    if done.returncode < 0:
        return Probe(runtime, works=False, told=f"it died of {signal.Signals(-done.returncode).name}")
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return Probe(runtime, works=done.returncode == 0, told=lines[-1] if lines else f"exit code {done.returncode}")


def _field(text: str, name: str) -> str:
    """The first line `name : value` of a file of the kernel."""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
