"""The process of one pass: a `PassJob` in, the file that it names out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from compiler.errors import Malformed
from compiler.passes.job import PassJob
from compiler.passes.table import PASSES


def run(question: IO[bytes]) -> Mapping[str, Any]:
    """The child: run one pass. Raises what the pass raises, and `Malformed` for a name that is none."""
    job = PassJob.from_bytes(question.read())
    if job.name not in PASSES:
        raise Malformed(f"pass {job.name[:80]}: there is none of this name; there are {', '.join(PASSES)}")
    PASSES[job.name](job)
    return {}
