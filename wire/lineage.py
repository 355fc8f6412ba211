"""`lineage.json`: what a bundle was made of, so that it can be made again. It travels inside the bundle.

No measurement, time, path or name of a machine: the same source, recipe, data and tools give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wire.document import CONTRACT, Document, check_digest

Use = Literal["test", "calibration", "train"]


@dataclass(frozen=True, kw_only=True)
class Dataset(Document):
    """Examples that took part: a name for people, the digest of the file, its rows, what for, and under which licence.

    `licence` is an SPDX expression, or "unknown".
    """

    name: str
    digest: str
    use: Use
    rows: int
    licence: str = "unknown"

    def __post_init__(self) -> None:
        check_digest(self.digest, f"dataset {self.name[:80]!r}")


@dataclass(frozen=True, kw_only=True)
class PassRecord(Document):
    """One pass of a recipe with everything that decides what it makes."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lineage(Document):
    """The recipe of a bundle as it ran: `tools` are versions by package, `machine` is the processor's `uname -m`."""

    contract: str = CONTRACT
    source: str
    source_kind: str
    architecture: str
    recipe: str
    passes: tuple[PassRecord, ...]
    datasets: tuple[Dataset, ...]
    tools: Mapping[str, str]
    machine: str

    def __post_init__(self) -> None:
        check_digest(self.source, "lineage.source")
