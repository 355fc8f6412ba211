"""Packs variants as bundles into an OCI image layout, with their evidence beside them.

    with Packer(Path("bundles")) as packer:
        bundle = packer.add_bundle(...)
        packer.add_evidence(bundle, ...)
        packer.publish()

Nothing appears in the layout before `publish`: blobs are written to a folder beside it and moved in, the index last. An
entry of the same target is replaced, others stay.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compiler.bundle.chunker import chunk_list
from compiler.bundle.layout import (
    BOM,
    BOM_TYPE,
    CARD,
    INDEX_FILE,
    LAYOUT,
    LAYOUT_FILE,
    REF_NAME,
    RESULTS,
    TITLE,
    Descriptor,
    Index,
    Layout,
    blob_path,
)
from compiler.bundle.made import Made
from compiler.errors import Unavailable
from compiler.variant import ROLES
from wire.bundle import (
    EVIDENCE_ARTIFACT,
    MODEL_ARTIFACT,
    OCI_EMPTY,
    OCI_MANIFEST,
    BundleConfig,
    BundleFile,
    BundleManifest,
    Role,
)
from wire.chunks import WHOLE, digest
from wire.document import dump_json
from wire.evidence import Evidence

TARGET = "shoal.target"
_EMPTY = b"{}"
_FORMATS = {
    "onnxruntime": "onnx",
    "tensorrt": "onnx",
    "litert": "tflite",
    "tflite-runtime": "tflite",
    "torchscript": "pt",
    "onnxruntime-genai": "onnx",
    "gguf": "gguf",
}


def folder_files(folder: Path) -> list[tuple[Role, str, bytes]]:
    """Role, name and bytes of each file of a variant's folder."""
    return [(ROLES[path.name], path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def bundle_files(files: Iterable[tuple[Role, str, bytes]]) -> tuple[tuple[BundleFile, ...], dict[str, bytes]]:
    """The entries of a manifest for `(role, name, bytes)`, chunk lists included, and the blobs by digest."""
    entries: list[BundleFile] = []
    blobs: dict[str, bytes] = {}
    for role, path, data in files:
        chunks = None
        if len(data) > WHOLE:
            listed = chunk_list(data).to_bytes()
            chunks = digest(listed)
            blobs[chunks] = listed
            entries.append(BundleFile(role="chunks", path=f"{path}.chunks.json", digest=chunks, size=len(listed)))
        entries.append(BundleFile(role=role, path=path, digest=digest(data), size=len(data), chunks=chunks))
        blobs[digest(data)] = data
    return tuple(sorted(entries, key=lambda f: f.path)), blobs


def manifest_of(
    named: Mapping[str, str], *, runtime: str, precision: str, architecture: str, files: tuple[BundleFile, ...]
) -> tuple[BundleManifest, bytes]:
    """The manifest of a bundle under a family, name, version and profile, and its ModelPack config blob.

    The config (CNCF model-spec v1) says what the model is, and the digests of its layers.
    """
    config = dump_json(
        {
            "descriptor": {"family": named["family"], "name": named["name"], "version": named["version"]},
            "config": {"architecture": architecture, "format": _FORMATS[runtime], "precision": precision},
            "modelfs": {"type": "layers", "diffIds": [f.digest for f in files]},
        }
    )
    manifest = BundleManifest(
        family=named["family"],
        name=named["name"],
        version=named["version"],
        profile=named["profile"],
        runtime=runtime,
        precision=precision,
        config=BundleConfig(digest=digest(config), size=len(config)),
        files=files,
        annotations={},
    )
    return manifest, config


class Packer:
    """Writes into a layout, all or nothing. Raises `Unavailable` when the disk does not take it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: list[Descriptor] = []

    def __enter__(self) -> Self:
        if (self.folder / LAYOUT_FILE).exists():
            Layout(self.folder)  # a damaged one is told now, and not after the work
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        except OSError as e:
            raise Unavailable(f"output {self.folder}: cannot be written: {e.strerror}") from e
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def add_bundle(self, manifest: BundleManifest, blobs: Iterable[bytes]) -> Descriptor:
        """Add a bundle with all its blobs, config included; its descriptor names the manifest."""
        for data in blobs:
            self._add_blob(data)
        named = {REF_NAME: manifest.target, TARGET: manifest.target, "shoal.profile": manifest.profile}
        return self._add_manifest(manifest.to_bytes(), MODEL_ARTIFACT, named)

    def add_evidence(self, bundle: Descriptor, evidence: Evidence, *, card: str, bom: bytes) -> Descriptor:
        """Add the evidence of a bundle, its card and its ML-BOM: an artifact whose subject is the bundle's manifest."""
        layers = [
            self._layer("application/json", RESULTS, evidence.to_bytes()),
            self._layer("text/markdown", CARD, card.encode()),
            self._layer(BOM_TYPE, BOM, bom),
        ]
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": EVIDENCE_ARTIFACT,
            "config": {"mediaType": OCI_EMPTY, "digest": self._add_blob(_EMPTY), "size": len(_EMPTY)},
            "layers": layers,
            "subject": {"mediaType": OCI_MANIFEST, "digest": bundle.digest, "size": bundle.size},
        }
        return self._add_manifest(dump_json(value), EVIDENCE_ARTIFACT, {TARGET: evidence.target})

    def publish(self) -> None:
        """Let everything that was added appear in the layout; the index last, in one step."""
        old = Layout(self.folder).index.manifests if (self.folder / LAYOUT_FILE).exists() else ()
        replaced = {(d.annotations or {}).get(TARGET) for d in self._entries}
        kept = [d for d in old if (d.annotations or {}).get(TARGET) not in replaced]
        index = Index(manifests=tuple(sorted([*kept, *self._entries], key=_order)))
        try:
            (self.folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            for path in sorted(self._scratch.iterdir()):
                path.replace(self.folder / "blobs" / "sha256" / path.name)
            for name, data in ((LAYOUT_FILE, LAYOUT), (INDEX_FILE, index.to_bytes())):
                (self._scratch / name).write_bytes(data)
                (self._scratch / name).replace(self.folder / name)
        except OSError as e:
            raise Unavailable(f"output {self.folder}: cannot be written: {e.strerror}") from e

    def _layer(self, media_type: str, title: str, data: bytes) -> dict[str, Any]:
        return {
            "mediaType": media_type,
            "digest": self._add_blob(data),
            "size": len(data),
            "annotations": {TITLE: title},
        }

    def _add_manifest(self, data: bytes, kind: str, annotations: dict[str, Any]) -> Descriptor:
        entry = Descriptor(
            mediaType=OCI_MANIFEST,
            digest=self._add_blob(data),
            size=len(data),
            artifactType=kind,
            annotations=annotations,
        )
        self._entries.append(entry)
        return entry

    def _add_blob(self, data: bytes) -> str:
        name = digest(data)
        path = self._scratch / blob_path(self.folder, name).name
        try:
            if not path.exists():
                path.write_bytes(data)
        except OSError as e:
            raise Unavailable(f"output {self.folder}: cannot be written: {e.strerror}") from e
        return name


def pack(
    packer: Packer, named: Mapping[str, str], made: Made, blobs: Mapping[str, bytes]
) -> tuple[Descriptor, BundleManifest]:
    """Pack what was made under a family, name, version and profile."""
    manifest, config = manifest_of(
        named, runtime=made.runtime, precision=made.precision, architecture=made.architecture, files=made.files
    )
    return packer.add_bundle(manifest, [config, *blobs.values()]), manifest


def _order(entry: Descriptor) -> tuple[str, str]:
    return str((entry.annotations or {}).get(TARGET)), entry.artifactType
