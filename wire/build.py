"""What goes into the compiler's process and what comes out of it.

`python -m compiler build` reads one `BuildJob` on standard input and writes one `Progress` per line on
standard output. The compiler is a process of its own: its memory comes back, its crash stays outside, and
the same command runs on a laptop, in CI and under the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from wire.document import CONTRACT, Document, check_name
from wire.errors import Malformed
from wire.evidence import Wanted
from wire.profile import Minimise, Profile
from wire.units import size

SAFE_SOURCES = ("huggingface", "onnx", "tflite")
"""Kinds of sources whose reading runs no code of theirs: the only ones for builds that come over the network."""


@dataclass(frozen=True, kw_only=True)
class Data(Document):
    """A file of examples, with the licence that lineage names (an SPDX expression, or "unknown")."""

    path: str
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class BuildJob(Document):
    """Compile `source` for every profile.

    `source` is a folder in Hugging Face layout, an `.onnx`, `.tflite`, `.gguf` or TorchScript `.pt` file,
    `python:package.module:function` that returns a torch module, or `models:/name@alias` of MLflow. `describe` is a
    TOML file that says what the source does not say itself (task, labels, pre-processing). `test` are the held-out
    examples, `calibration` others that static quantization observes and confidence is learnt from. `output` is the OCI
    image layout to write, `cache` a folder of earlier results.

    Limits: `max_drop` in points of the task's metric, `max_ms` of the median latency and `max_mb` (10^6 bytes) of the
    bundle, 0 where there is none; `minimise` None leaves it to each profile. `confidence` is two-sided. `recipes`
    narrows the search to these. `target_error`, of 100 answers, sets the confidence below which a larger model is asked
    (`wire.pipeline.Calibration`). `memory` bounds what the builds of candidates may take at the same time. `workers`
    name the Python of runtimes that need an environment of their own, by runtime. `safe` refuses sources that run code.
    """

    LIMIT: ClassVar[int] = 1024 * 1024

    contract: str = CONTRACT
    family: str
    name: str
    version: str
    source: str
    describe: str | None = None
    test: Data
    calibration: Data | None = None
    output: str
    cache: str
    profiles: tuple[Profile, ...]
    max_drop: float = 1.0
    max_ms: float = 0.0
    max_mb: float = 0.0
    minimise: Minimise | None = None
    confidence: float = 0.95
    recipes: tuple[str, ...] = ()
    target_error: float = 0.5
    memory: str = "3 GiB"
    processes: int = 2
    workers: Mapping[str, str] = field(default_factory=dict)
    safe: bool = False

    def __post_init__(self) -> None:
        for key in ("family", "name", "version"):
            check_name(getattr(self, key), f"build.{key}")
        names = [p.name for p in self.profiles]
        if len(set(names)) != len(names):
            raise Malformed(f"build: a profile stands twice among {', '.join(names)}")
        if not self.profiles or not 0 <= self.max_drop <= 100:
            raise Malformed("build: needs at least one profile, and max_drop from 0 to 100 points")
        if self.max_ms < 0 or self.max_mb < 0:
            raise Malformed("build: max_ms and max_mb are 0 (no limit) or more")
        if not 0 <= self.target_error <= 100:
            raise Malformed(f"build: target_error {self.target_error:g}, expected 0 to 100")
        if not 0.5 <= self.confidence < 1:
            raise Malformed(f"build: confidence {self.confidence:g}, expected 0.5 or more and below 1")
        if not 1 <= self.processes <= 64:
            raise Malformed(f"build: processes {self.processes}, expected 1 to 64")
        size(self.memory, where="build.memory")

    def wanted(self, profile: Profile) -> Wanted:
        """The limits of the search for one profile."""
        return Wanted(
            max_drop=self.max_drop,
            max_ms=self.max_ms,
            max_mb=self.max_mb,
            minimise=self.minimise or profile.minimise,
            confidence=self.confidence,
        )


@dataclass(frozen=True, kw_only=True)
class VerifyJob(Document):
    """Make a bundle again by its recorded recipe, and compare: same digest or not. The search is not repeated.

    `layout` holds the bundle of `target`; `source`, `describe`, `test` and `calibration` are as in `BuildJob` and must
    have the digests that the bundle's lineage names.
    """

    LIMIT: ClassVar[int] = 1024 * 1024

    contract: str = CONTRACT
    layout: str
    target: str
    source: str
    describe: str | None = None
    test: Data
    calibration: Data | None = None
    profile: Profile
    workers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """One line of progress.

    `step`: work on a profile goes on (`message`, `done` of `total` steps). `variant`: a bundle is ready
    (`digest` of its manifest, `evidence` digest, `cached`). `note`: something the user should know, such as too few
    examples. `done`: all are. `failed`: `message` says why and what to do, and `error` is its class.
    """

    event: Literal["step", "note", "variant", "done", "failed"]
    message: str
    profile: str | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    digest: str | None = None
    evidence: str | None = None
    cached: bool | None = None
    error: str | None = None
