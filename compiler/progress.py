"""Progress as JSON lines on what was standard output when the process started.

Everything else that prints (libraries, C++ code, warnings) goes to standard error: descriptor 1 is moved
out of its way, so that a reader of the lines never meets a stranger.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from wire.build import Progress


def take_stdout() -> IO[bytes]:
    """The real standard output; from now on `print` and C libraries write to standard error."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return lines


@dataclass
class Reporter:
    """Writes progress lines and counts the steps. `total` is the number of steps of the whole job, as far as known."""

    lines: IO[bytes]
    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _stage: int = 0

    def step(self, message: str, *, profile: str | None = None) -> None:
        """A step begins."""
        self.still(message, profile=profile)
        self.done = min(self.done + 1, self.total)

    def still(self, message: str, *, profile: str | None = None) -> None:
        """What goes on within a step."""
        self._write(
            Progress(
                event="step",
                message=message,
                profile=profile,
                done=self.done,
                total=self.total,
                seconds_left=self._left(),
            )
        )

    def note(self, message: str, *, profile: str | None = None) -> None:
        """Something that the user should know."""
        self._write(Progress(event="note", message=message, profile=profile))

    def more(self, steps: int) -> None:
        """Steps that lie ahead, as they become known."""
        self.total += steps

    def skip(self, steps: int) -> None:
        """Steps that turned out not to be needed."""
        self.done = min(self.done + steps, self.total)

    @contextmanager
    def stage(self, message: str, steps: int) -> Iterator[None]:
        """Work of several steps, known in `total` already: `tick` counts them, and at the end all are done."""
        end = self.done + steps
        self._stage = max(self.done, end - 1)
        self.still(message)
        yield
        self.done, self._stage = min(end, self.total), self.total

    def tick(self, message: str) -> None:
        """One step of a stage is over."""
        self.done = min(self.done + 1, self._stage)
        self.still(message)

    def _left(self) -> float | None:
        """An estimate in seconds: the steps to come take as long as those that are over."""
        spent = time.monotonic() - self.started
        return spent / self.done * (self.total - self.done) if self.done and self.total > self.done else None

    def variant(self, message: str, *, profile: str, digest: str, evidence: str, cached: bool) -> None:
        """A bundle is ready: the digests of its manifest and of its evidence's manifest."""
        self._write(
            Progress(event="variant", message=message, profile=profile, digest=digest, evidence=evidence, cached=cached)
        )

    def finish(self, message: str, *, digest: str | None = None) -> None:
        """Everything is done; `digest` where one manifest is the result."""
        self._write(Progress(event="done", message=message, done=self.total, total=self.total, digest=digest))

    def fail(self, error: BaseException) -> None:
        """Nothing was written; `error` says why and what to do."""
        self._write(Progress(event="failed", message=str(error), error=type(error).__name__))

    def _write(self, line: Progress) -> None:
        self.lines.write(line.to_bytes() + b"\n")
