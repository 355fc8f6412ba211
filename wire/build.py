"""What goes into the compiler's process and what comes out of it.

`python -m compiler build` reads one `BuildJob` on standard input and writes one `Progress` per line on
standard output. The compiler is a process of its own: its memory comes back, its crash stays outside, and
the same command runs on a laptop, in CI and under the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from wire.document import CONTRACT, Document, check_name
from wire.errors import Malformed
from wire.profile import Profile


@dataclass(frozen=True, kw_only=True)
class BuildJob(Document):
    """Compile `source` for every profile.

    `source` is the folder of a source model, `test_set` a JSONL file of held-out `{"text", "label"}` rows,
    `output` the OCI image layout to write, `cache` a folder of earlier results. `max_drop` is the accuracy
    a variant may lose against the source, in points of a percent.
    """

    LIMIT: ClassVar[int] = 1024 * 1024

    contract: str = CONTRACT
    family: str
    name: str
    version: str
    source: str
    test_set: str
    output: str
    cache: str
    profiles: tuple[Profile, ...]
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        for key in ("family", "name", "version"):
            check_name(getattr(self, key), f"build.{key}")
        names = [p.name for p in self.profiles]
        if len(set(names)) != len(names):
            raise Malformed(f"build: a profile stands twice among {', '.join(names)}")
        if not self.profiles or not 0 <= self.max_drop <= 100:
            raise Malformed("build: needs at least one profile, and max_drop from 0 to 100 points")


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """One line of progress.

    `step`: work on a profile goes on (`message`, `done` of `total` steps). `variant`: a bundle is ready
    (`digest` of its manifest, `evidence` digest, `cached`). `done`: all are. `failed`: `message` says why
    and what to do, and `error` is its class.
    """

    event: Literal["step", "variant", "done", "failed"]
    message: str
    profile: str | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    digest: str | None = None
    evidence: str | None = None
    cached: bool | None = None
    error: str | None = None
