"""Reads an OCI image layout: the bundles in it, their evidence and blobs, each byte verified against its digest.

Imports neither numpy nor anything heavier: commands use it to list and to sign.

    layout = Layout(Path("bundles"))
    for found in layout.bundles():
        found.digest, found.manifest.target, layout.evidence(found.digest)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from compiler.errors import Malformed, Untrusted
from wire.bundle import EVIDENCE_ARTIFACT, MODEL_ARTIFACT, OCI_INDEX, BundleManifest
from wire.document import Document, check_digest, parse_json
from wire.errors import WireError
from wire.evidence import Evidence

LAYOUT_FILE, LAYOUT = "oci-layout", b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE = "index.json"
REF_NAME = "org.opencontainers.image.ref.name"
RESULTS, CARD, BOM = "results.json", "card.md", "bom.json"
BOM_TYPE = "application/vnd.cyclonedx+json"
TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True, kw_only=True)
class Descriptor(Document):
    """An OCI descriptor; `annotations` and `artifactType` may be absent, other members are kept."""

    mediaType: str  # noqa: N815  the OCI specification's name
    digest: str
    size: int
    artifactType: str = ""  # noqa: N815
    annotations: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_digest(self.digest, "descriptor digest")


@dataclass(frozen=True, kw_only=True)
class Index(Document):
    """`index.json`: what the layout lists."""

    LIMIT: ClassVar[int] = 4 * 1024 * 1024

    schemaVersion: int = 2  # noqa: N815
    mediaType: str = OCI_INDEX  # noqa: N815
    manifests: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Artifact(Document):
    """A manifest that stands beside another one, its `subject`."""

    schemaVersion: int  # noqa: N815
    mediaType: str  # noqa: N815
    artifactType: str  # noqa: N815
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor


@dataclass(frozen=True)
class FoundBundle:
    """A bundle of a layout: its manifest's digest and length in bytes, and the manifest."""

    digest: str
    size: int
    manifest: BundleManifest


class Layout:
    """An OCI image layout on disk. Raises `Malformed` when the folder is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / LAYOUT_FILE).is_file():
            raise Malformed(f"layout {folder}: no {LAYOUT_FILE} in it: give the folder that a build wrote")
        self.index = self._read_index()

    def bundles(self) -> list[FoundBundle]:
        """Every bundle that the index lists. Raises `Malformed` or `Untrusted` for one that is damaged."""
        listed = [d for d in self.index.manifests if d.artifactType == MODEL_ARTIFACT]
        return [FoundBundle(d.digest, d.size, self._manifest(d)) for d in listed]

    def find(self, target: str) -> FoundBundle:
        """The bundle of a target path. Raises `Malformed` when the layout does not list it."""
        for found in self.bundles():
            if found.manifest.target == target:
                return found
        listed = ", ".join(b.manifest.target for b in self.bundles()) or "none"
        raise Malformed(f"layout {self.folder}: no bundle for {target}; it lists {listed}")

    def evidence(self, subject: str) -> Evidence | None:
        """The evidence record beside a bundle's manifest, or None."""
        data = self._beside(subject, RESULTS)
        return None if data is None else Evidence.from_bytes(data)

    def card(self, subject: str) -> str | None:
        """The model card beside a bundle's manifest, or None."""
        data = self._beside(subject, CARD)
        return None if data is None else data.decode()

    def bom(self, subject: str) -> bytes | None:
        """The ML-BOM beside a bundle's manifest, or None."""
        return self._beside(subject, BOM)

    def blob(self, digest: str) -> Path:
        """The file of a blob, verified. Raises `Malformed` when it is absent, `Untrusted` when it changed."""
        path = blob_path(self.folder, digest)
        verify(path, digest)
        return path

    def read(self, digest: str) -> bytes:
        """The bytes of a blob, verified."""
        return self.blob(digest).read_bytes()

    def _read_index(self) -> Index:
        try:
            return Index.from_bytes((self.folder / INDEX_FILE).read_bytes())
        except (OSError, WireError) as e:
            raise Malformed(f"layout {self.folder}/{INDEX_FILE}: {e}") from e

    def _manifest(self, descriptor: Descriptor) -> BundleManifest:
        try:
            return BundleManifest.from_bytes(self.read(descriptor.digest))
        except WireError as e:
            raise Malformed(f"layout {self.folder}: manifest {descriptor.digest}: {e}") from e

    def _beside(self, subject: str, title: str) -> bytes | None:
        for descriptor in self.index.manifests:
            if descriptor.artifactType == EVIDENCE_ARTIFACT:
                artifact = Artifact.from_value(
                    parse_json(self.read(descriptor.digest), what="evidence manifest", limit=Artifact.LIMIT)
                )
                layers = [d for d in artifact.layers if (d.annotations or {}).get(TITLE) == title]
                if artifact.subject.digest == subject and layers:
                    return self.read(layers[0].digest)
        return None


def blob_path(folder: Path, digest: str) -> Path:
    """Where a layout keeps a blob. Raises the contract's `Malformed` for a digest that is none."""
    return folder / "blobs" / "sha256" / check_digest(digest, "blob digest").removeprefix("sha256:")


def verify(path: Path, digest: str) -> None:
    """Raises `Malformed` when a blob is absent, `Untrusted` when its content is not what the digest says."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise Malformed(f"blob {path}: cannot be read: {e.strerror}: build it again") from e
    if f"sha256:{found}" != digest:
        raise Untrusted(f"blob {path}: its content has the digest sha256:{found}: it was changed; build it again")
