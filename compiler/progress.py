"""Progress as JSON lines on what was standard output when the process started.

Everything else that prints (libraries, C++ code, warnings) goes to standard error: descriptor 1 is moved
out of its way, so that a reader of the lines never meets a stranger.
"""

from __future__ import annotations

import os
import sys
import time
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
    """Writes progress lines and counts the steps. `total` is the number of steps of the whole job."""

    lines: IO[bytes]
    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def step(self, message: str, *, profile: str | None = None) -> None:
        """A step begins."""
        spent = time.monotonic() - self.started
        left = spent / self.done * (self.total - self.done) if self.done and self.total > self.done else None
        self._write(
            Progress(
                event="step", message=message, profile=profile, done=self.done, total=self.total, seconds_left=left
            )
        )
        self.done = min(self.done + 1, self.total)

    def skip(self, steps: int) -> None:
        """Steps that turned out not to be needed."""
        self.done = min(self.done + steps, self.total)

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
