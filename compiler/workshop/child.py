"""The inside of a child process of the workshop: it ends with its parent, and says in words what became of it.

A child reads one question on standard input and writes JSON lines on standard output: how far it is
(`{"done": 64, "total": 2000}`), and at the end `{"ok": true, "peak": bytes, ...}` or
`{"error": kind, "message": words}`. `compiler.workshop.children` is the other side.
"""

# ruff: noqa: PLC0415  ctypes is for the children alone
from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PARENT = "SHOAL_COMPILER_PARENT"
"""The environment's name for the process that a child must not outlive."""
EVERY = 1.0
"""Seconds between two lines of progress."""
_PR_SET_PDEATHSIG = 1


@dataclass
class Lines:
    """The lines that the parent reads."""

    file: IO[bytes]
    _last: float = float("-inf")

    def progress(self, done: int, total: int) -> None:
        """How far it is; not every call writes a line."""
        if time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self.write({"done": done, "total": total})

    def write(self, line: Mapping[str, Any]) -> None:
        """One line."""
        self.file.write(json.dumps(line).encode() + b"\n")


def answer(file: IO[bytes], work: Callable[[Lines], Mapping[str, Any]], known: Callable[[Exception], Exception]) -> int:
    """Do the work and say how it ended; the exit code. `known` gives an error in the words of the compiler."""
    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told in words: no file as large as the memory
    lines = Lines(file)
    try:
        facts = work(lines)
    except Exception as e:  # noqa: BLE001  libraries' errors share no base, and the parent must get words for all
        traceback.print_exc(file=sys.stderr)
        fault = known(e)
        lines.write({"error": type(fault).__name__, "message": str(fault) or type(fault).__name__})
        return 1
    lines.write({"ok": True, "peak": peak(), **facts})
    return 0


def peak() -> int:
    """The most memory in bytes that this process held."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Not ru_maxrss: it starts at the size of the process that started this one.
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone, however that ended."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the process that asked for this is gone")
