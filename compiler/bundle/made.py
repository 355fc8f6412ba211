"""What a search for one profile came to, as the cache keeps it: files by digest, evidence without its subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from wire.bundle import BundleFile, Precision, Runtime
from wire.document import Document
from wire.evidence import Attempt, ClassChange, Decision, Evidence, Measurement, Reference, Sabotage, Wanted
from wire.lineage import Dataset
from wire.pipeline import Task


@dataclass(frozen=True, kw_only=True)
class Made(Document):
    """A variant, ready to be packed under any name and version. The fields are those of `Evidence`."""

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    files: tuple[BundleFile, ...]
    recipe: str
    runtime: Runtime
    precision: Precision
    task: Task
    source: str
    architecture: str
    tools: Mapping[str, str]
    datasets: tuple[Dataset, ...]
    wanted: Wanted
    decision: Decision
    measurements: tuple[Measurement, ...]
    attempts: tuple[Attempt, ...]
    classes: tuple[ClassChange, ...]
    sabotage: tuple[Sabotage, ...]
    reference: Reference | None = None

    def evidence(self, subject: str, target: str, *, compile_only: bool, registered: str = "") -> Evidence:
        """The evidence of the bundle that this was packed as: the digest of its manifest, and its target path.

        `registered`: the version of a registry that its source is. The same files may stand there under many names.
        """
        return Evidence(
            subject=subject,
            target=target,
            task=self.task,
            recipe=self.recipe,
            runtime=self.runtime,
            precision=self.precision,
            source=self.source,
            architecture=self.architecture,
            tools=self.tools,
            datasets=self.datasets,
            wanted=self.wanted,
            decision=self.decision,
            measurements=self.measurements,
            attempts=self.attempts,
            classes=self.classes,
            sabotage=self.sabotage,
            compile_only=compile_only,
            registered=registered,
            reference=self.reference,
        )
