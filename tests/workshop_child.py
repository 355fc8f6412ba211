"""A program for a workshop to start in place of the compiler: passes that go wrong, and passes that can be watched.

Every pass writes its name into the file that `PASS_LOG` names when it begins, and again when it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible
from compiler.passes.job import PassJob
from compiler.workshop import child
from compiler.workshop.timing import TimeJob, time_all


def log(line: str) -> None:
    with Path(os.environ["PASS_LOG"]).open("a") as file:
        file.write(line + "\n")


def wait_for(condition: Callable[[], bool]) -> None:
    """The workshop's deadline ends a wait that is in vain."""
    while not condition():
        time.sleep(0.01)


def copy(job: PassJob) -> None:
    before = job.input.read_bytes() if job.given else b""
    job.output.write_bytes(before + f"{job.parameters.get('text', '')}.".encode())


def meet(job: PassJob) -> None:
    """Ends when two passes run at the same time."""
    wait_for(lambda: Path(os.environ["PASS_LOG"]).read_text().count("begins") >= 2)
    copy(job)


def gate(job: PassJob) -> None:
    """Ends when the file `open` stands beside the log."""
    wait_for(Path(os.environ["PASS_LOG"]).with_name("open").exists)
    copy(job)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def refuse(job: PassJob) -> None:
    raise Incompatible("source x: it has an operator Foo that nothing takes")


def break_down(job: PassJob) -> None:
    raise ValueError("a shape of 3 where 4 was expected")


def crash(job: PassJob) -> None:
    die(signal.SIGSEGV)


def be_killed(job: PassJob) -> None:
    """What the kernel does to the largest process when memory runs out."""
    die(signal.SIGKILL)


def hang(job: PassJob) -> None:
    wait_for(lambda: False)


def idle(job: PassJob) -> None:
    """Writes nothing."""


def devour(job: PassJob) -> None:
    bytearray(1 << 60)


def leave(job: PassJob) -> None:
    print("no space left in the arena", file=sys.stderr)
    os._exit(7)


PASSES: Mapping[str, Callable[[PassJob], None]] = {
    "copy": copy,
    "meet": meet,
    "gate": gate,
    "segfault": crash,
    "killed": be_killed,
    "hang": hang,
    "refuse": refuse,
    "break": break_down,
    "devour": devour,
    "leave": leave,
    "nothing": idle,
}


def run_pass(_: child.Lines) -> Mapping[str, Any]:
    job = PassJob.from_bytes(sys.stdin.buffer.read())
    label = f"{job.name} {job.parameters.get('text', '')}".strip()
    log(f"{label} begins {os.getpid()}")
    PASSES[job.name](job)
    log(f"{label} ends")
    return {}


def run_timing(lines: child.Lines) -> Mapping[str, Any]:
    """As the compiler does it, unless a variant's folder holds a file `crash`."""
    question = sys.stdin.buffer.read()
    for at, variant in enumerate(TimeJob.from_bytes(question).variants):
        lines.write({"at": at})
        if Path(variant.folder, "crash").exists():
            die(signal.SIGILL)
    return time_all(BytesIO(question), lines)


if __name__ == "__main__":
    work = run_pass if sys.argv[1] == "pass" else run_timing
    sys.exit(child.answer(os.fdopen(1, "wb", buffering=0), work, lambda e: e))
