"""Child processes: several at once within the memory allowed, each with a deadline, none outliving its parent.

    with Children(command, scratch, processes=2, memory=3 << 30, note=print) as children:
        children.start(Task("onnx.export", ("pass",), question, memory=1 << 30, deadline=600.0))
        name, ended = children.wait()         # Answer or Failed

A child that crashes, hangs, runs out of memory or raises is a `Failed` with the reason in words. The other side is
`compiler.workshop.child`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compiler.workshop.child import PARENT
from wire.units import show_seconds, show_size

COMMAND = (sys.executable, "-P", "-m", "compiler")
EVERY = 2.0
"""Seconds between two notes on children that run."""
_POLL = 0.02
_TAIL = 4096
_MEMORY = ("MemoryError", "bad_alloc", "can't allocate memory", "Failed to allocate memory", "Cannot allocate memory")
"""What Python, C++, torch, ONNX Runtime and the system say when memory runs out."""

OUT_OF_MEMORY, CRASHED, TOO_SLOW = "OutOfMemory", "Crashed", "TooSlow"


@dataclass(frozen=True)
class Task:
    """What a child is for. `memory` in bytes is what it is expected to take, `deadline` in seconds."""

    name: str
    arguments: tuple[str, ...]
    question: bytes
    memory: int
    deadline: float


@dataclass(frozen=True)
class Answer:
    """What a child found: `facts` of its last line, its peak of memory in bytes, and its seconds."""

    facts: Mapping[str, Any]
    peak: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A child that gave no result: what it was for and why, in words.

    `kind` is the class of the error it raised, `OutOfMemory`, `Crashed` or `TooSlow`. `last` is the last line of
    progress that it wrote.
    """

    name: str
    reason: str
    kind: str
    last: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Child:
    task: Task
    folder: Path
    process: subprocess.Popen[bytes]
    started: float
    read: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)
    late: bool = False

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started


class Children:
    """Those that run now. Leaving the `with` ends them all."""

    def __init__(
        self,
        command: Sequence[str],
        scratch: Path,
        *,
        processes: int,
        memory: int,
        note: Callable[[str], None],
    ) -> None:
        self._command, self._scratch = command, scratch
        self._processes, self._memory = processes, memory
        self._note = note
        self._running: list[_Child] = []
        self._numbers = count()
        self._noted = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self._running:
            _kill(child)
        for child in self._running:
            child.process.wait()

    @property
    def running(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._running)

    def fits(self, memory: int) -> bool:
        """Whether one more may start: one always may, else only with a free place and enough memory."""
        taken = sum(child.task.memory for child in self._running)
        return not self._running or (len(self._running) < self._processes and taken + memory <= self._memory)

    def start(self, task: Task) -> None:
        """Start a child. Its files and its own temporary files lie in the scratch folder."""
        folder = self._scratch / f"child-{os.getpid()}-{next(self._numbers)}"
        folder.mkdir()
        (folder / "question").write_bytes(task.question)
        with (
            (folder / "question").open("rb") as question,
            (folder / "answer").open("wb") as answer,
            (folder / "errors").open("wb") as errors,
        ):
            process = subprocess.Popen(
                [*self._command, *task.arguments],
                stdin=question,
                stdout=answer,
                stderr=errors,
                env={**_environment(), PARENT: str(os.getpid()), "TMPDIR": str(folder)},
                # A session of its own: what it starts itself is ended with it, and Ctrl-C is the parent's to handle.
                start_new_session=True,
            )
        self._running.append(_Child(task, folder, process, time.monotonic()))

    def wait(self) -> tuple[Task, Answer | Failed]:
        """The next child that ends. Notes how far the others are, every two seconds."""
        while True:
            for child in self._running:
                _read(child)
                if _has_ended(child):
                    self._running.remove(child)
                    return child.task, _ended(child)
                if child.spent > child.task.deadline and not child.late:
                    child.late = True
                    _kill(child)
            self._tell()
            time.sleep(_POLL)

    def _tell(self) -> None:
        if time.monotonic() - self._noted >= EVERY:
            self._noted = time.monotonic()
            self._note(", ".join(map(_show, self._running)))


def _environment() -> dict[str, str]:
    """Ours without what opens a registry of models: a child may run the code of a model from there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def _show(child: _Child) -> str:
    done, total = child.last.get("done"), child.last.get("total")
    far = f"{done} of {total}, " if total else ""
    return f"{child.task.name} ({far}{show_seconds(child.spent)})"


def _read(child: _Child) -> None:
    """Take in the whole lines that came since."""
    with (child.folder / "answer").open("rb") as file:
        file.seek(child.read)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    child.read += len(whole)
    for line in map(_parsed, whole.splitlines()):
        if "ok" in line or "error" in line:
            child.end = line
        else:
            child.last = line


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}  # a program that dies may leave anything
    return value if isinstance(value, dict) else {}


def _has_ended(child: _Child) -> bool:
    return os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(child: _Child) -> None:
    """End a child and what it started. It is not waited for yet, so the number of its group is still its own."""
    os.killpg(child.process.pid, signal.SIGKILL)


def _ended(child: _Child) -> Answer | Failed:
    spent = child.spent
    _kill(child)  # what it started itself, a worker say
    _, status, usage = os.wait4(child.process.pid, 0)
    code = child.process.returncode = os.waitstatus_to_exitcode(status)
    _read(child)
    errors = _last_line(child.folder / "errors")
    shutil.rmtree(child.folder)
    peak = usage.ru_maxrss * 1024
    if not code and child.end.get("ok"):
        return Answer(child.end, int(child.end.get("peak", peak)), spent)
    kind, reason = _fault(child, code, errors, show_size(peak))
    return Failed(child.task.name, reason, kind, child.last)


def _fault(child: _Child, code: int, errors: str, peak: str) -> tuple[str, str]:
    """What became of a child that gave no result: the kind, and a sentence."""
    if child.late:
        return TOO_SLOW, f"it was ended: not done after {show_seconds(child.task.deadline)}"
    told, message = str(child.end.get("error", "")), str(child.end.get("message", errors))
    if any(word in f"{told} {message}" for word in _MEMORY):
        return OUT_OF_MEMORY, f"out of memory at {peak}: {message}"
    if told:
        return told, message
    if code == -signal.SIGKILL:
        return OUT_OF_MEMORY, f"killed at {peak} (SIGKILL), as the system does when it is out of memory"
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code} and no answer"
    return CRASHED, f"{how}: {errors}" if errors else how


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[-500:] for line in reversed(lines) if line.strip()), "")
