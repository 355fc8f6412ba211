"""What machine this is."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """`board` is the device tree's model, "" where there is none; `machine` is that of `uname -m`."""

    board: str
    machine: str
    cpu: str

    def __str__(self) -> str:
        return ", ".join(part for part in (self.board, self.cpu, self.machine) if part)


def detect(root: Path = Path("/")) -> Machine:
    """Look at the device tree and the processor."""
    board = _text(root / "proc/device-tree/model").rstrip("\0").strip()
    return Machine(board, platform.machine(), _cpu(_text(root / "proc/cpuinfo")))


def _cpu(cpuinfo: str) -> str:
    """Its name on x86; ARM kernels give none."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, "")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
