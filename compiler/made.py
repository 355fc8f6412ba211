"""What a compile for one profile came to, as the cache keeps it: files by digest, evidence without its subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from wire.bundle import BundleFile, Precision, Runtime
from wire.document import Document
from wire.evidence import Attempt, Measurement


@dataclass(frozen=True, kw_only=True)
class Made(Document):
    """A variant, ready to be packed under any name and version."""

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    recipe: str
    runtime: Runtime
    precision: Precision
    architecture: str
    files: tuple[BundleFile, ...]
    device: str
    versions: Mapping[str, str]
    dataset: Mapping[str, str]
    measurements: tuple[Measurement, ...]
    attempts: tuple[Attempt, ...]
