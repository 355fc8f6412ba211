"""The bundle: an OCI image manifest (1.1) for one variant, and the documents among its blobs.

A bundle is a directory in OCI image layout. Its manifest names every file by digest, so the manifest's
own digest names the whole bundle, and that is what a release signs. A bundle holds no measurement and no
time: the same source, recipe, data and tools give the same bytes.

Media types are those of CNCF ModelPack (model-spec v1) where it has one; ours start with
`application/vnd.shoal.`. Annotations of ours start with `shoal.`.

    manifest = BundleManifest.from_bytes(data)
    manifest.file("model").path, manifest.profile, manifest.runtime
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from wire.chunks import WHOLE
from wire.document import CONTRACT, Document, check_contract, check_digest, check_file, check_name
from wire.errors import Malformed

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
EVIDENCE_ARTIFACT = "application/vnd.shoal.evidence.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"

Role = Literal["model", "weights", "runtime-config", "tokenizer", "labels", "pipeline", "golden", "lineage", "chunks"]
"""`model` is the one file that the runtime opens. Beside it, found by their names, may stand `weights` that it refers
to, and each `runtime-config`: what a runtime that brings its own tokenizer and search reads."""
MEDIA_TYPES: Mapping[Role, str] = {
    "model": "application/vnd.cncf.model.weight.v1.raw",
    "weights": "application/vnd.cncf.model.weight.v1.raw",
    "runtime-config": "application/vnd.cncf.model.weight.config.v1.raw",
    "tokenizer": "application/vnd.cncf.model.weight.config.v1.raw",
    "labels": "application/vnd.cncf.model.weight.config.v1.raw",
    "pipeline": "application/vnd.shoal.pipeline.v1+json",
    "golden": "application/vnd.shoal.golden.v1+json",
    "lineage": "application/vnd.shoal.lineage.v1+json",
    "chunks": "application/vnd.shoal.chunks.v1+json",
}
FILEPATH = "org.cncf.model.filepath"

Runtime = Literal["onnxruntime", "litert", "tflite-runtime", "torchscript", "tensorrt", "onnxruntime-genai", "gguf"]
LANGUAGE_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime-genai", "gguf")
"""Runtimes that generate text. `gguf` is a file of llama.cpp's format, and whatever reads it there."""
Precision = Literal["fp32", "fp16", "int8", "int4"]
"""In what a variant's weights are stored."""


@dataclass(frozen=True, kw_only=True)
class BundleFile(Document):
    """One blob: its role, file name, digest, size in bytes, and the digest of its chunk list if it has one."""

    role: Role
    path: str
    digest: str
    size: int
    chunks: str | None = None

    def __post_init__(self) -> None:
        check_digest(self.digest, f"bundle file {self.path[:80]!r}")
        check_file(self.path, f"bundle file {self.path[:80]!r}")
        if self.size <= 0:
            raise Malformed(f"bundle file {self.path}: size {self.size}, expected more than 0")
        if self.size > WHOLE and self.chunks is None and self.role != "chunks":
            raise Malformed(f"bundle file {self.path}: over {WHOLE} bytes and without a chunk list")
        if self.chunks is not None:
            check_digest(self.chunks, f"chunk list of {self.path}")


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What an OCI manifest says of a bundle. `annotations` and `extra` keep what this reader does not know."""

    LIMIT: ClassVar[int] = WHOLE

    family: str
    name: str
    version: str
    profile: str
    runtime: str
    precision: str
    config: BundleConfig
    files: tuple[BundleFile, ...]
    contract: str = CONTRACT
    annotations: Mapping[str, str]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def file(self, role: Role) -> BundleFile:
        """The one file of a role. Raises `Malformed` when it is absent or there are two."""
        found = [f for f in self.files if f.role == role]
        if len(found) != 1:
            raise Malformed(f"bundle {self.target}: {len(found)} files of role {role!r}, expected 1")
        return found[0]

    @property
    def loaded(self) -> tuple[BundleFile, ...]:
        """What the runtime opens: the model file, its weights and its configuration."""
        return tuple(f for f in self.files if f.role in ("model", "weights", "runtime-config"))

    @property
    def target(self) -> str:
        """The target path that a release names: `models/<family>/<name>/<version>/<profile>`."""
        return target_path(self.family, self.name, self.version, self.profile)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files) + self.config.size

    def to_bytes(self) -> bytes:
        """The OCI image manifest as JSON. The inverse of `from_bytes`."""
        ours = {f"shoal.{k}": getattr(self, k) for k in _OURS}
        manifest = _OciManifest(
            schemaVersion=2,
            mediaType=OCI_MANIFEST,
            artifactType=MODEL_ARTIFACT,
            config=_OciDescriptor(mediaType=MODEL_CONFIG, digest=self.config.digest, size=self.config.size),
            layers=tuple(_to_descriptor(f) for f in self.files),
            annotations={**self.annotations, **ours},
            extra=self.extra,
        )
        return manifest.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> BundleManifest:
        """Parse and check. Raises `Malformed`, or `Incompatible` for another contract major."""
        oci = _OciManifest.from_bytes(data)
        if oci.artifactType != MODEL_ARTIFACT:
            raise Malformed(f"manifest: artifact type {oci.artifactType!r} is not a bundle ({MODEL_ARTIFACT})")
        ours = {k: oci.annotations.get(f"shoal.{k}", "") for k in _OURS}
        check_contract(ours["contract"], "manifest")
        for key in ("family", "name", "version", "profile", "runtime", "precision"):
            check_name(ours[key], f"manifest annotation shoal.{key}")
        files = tuple(_to_file(d) for d in oci.layers)
        if len({f.path for f in files}) != len(files):
            raise Malformed("manifest: two files of one name")
        rest = {k: v for k, v in oci.annotations.items() if k.removeprefix("shoal.") not in _OURS}
        config = BundleConfig(digest=oci.config.digest, size=oci.config.size)
        return cls(config=config, files=files, annotations=rest, extra=oci.extra, **ours)


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Digest and size of the ModelPack config blob."""

    digest: str
    size: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= WHOLE:
            raise Malformed(f"manifest config {self.digest}: size {self.size}, expected 1 to {WHOLE} bytes")


def target_path(family: str, name: str, version: str, profile: str) -> str:
    """Where a release stands in the signed metadata: `models/<family>/<name>/<version>/<profile>`."""
    parts = {"family": family, "name": name, "version": version, "profile": profile}
    return "models/" + "/".join(check_name(v, f"target {k}") for k, v in parts.items())


def split_target(path: str) -> tuple[str, str, str, str]:
    """The family, name, version and profile of a target path. Raises `Malformed`."""
    parts = path.split("/")
    if len(parts) != 5 or parts[0] != "models":
        raise Malformed(f"target {path[:200]!r}: expected models/<family>/<name>/<version>/<profile>")
    family, name, version, profile = (check_name(p, f"target {path[:200]!r}") for p in parts[1:])
    return family, name, version, profile


_OURS = ("contract", "family", "name", "version", "profile", "runtime", "precision")


@dataclass(frozen=True, kw_only=True)
class _OciDescriptor(Document):
    mediaType: str
    digest: str
    size: int
    annotations: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_digest(self.digest, "descriptor digest")


@dataclass(frozen=True, kw_only=True)
class _OciManifest(Document):
    LIMIT: ClassVar[int] = WHOLE

    schemaVersion: int
    mediaType: str
    artifactType: str
    config: _OciDescriptor
    layers: tuple[_OciDescriptor, ...]
    annotations: Mapping[str, str]


def _to_descriptor(f: BundleFile) -> _OciDescriptor:
    notes: dict[str, str] = {**f.extra, FILEPATH: f.path, "shoal.role": f.role}
    if f.chunks:
        notes["shoal.chunks"] = f.chunks
    return _OciDescriptor(mediaType=MEDIA_TYPES[f.role], digest=f.digest, size=f.size, annotations=notes)


def _to_file(d: _OciDescriptor) -> BundleFile:
    notes: dict[str, Any] = dict(d.annotations or {})
    known = {
        "role": notes.pop("shoal.role", ""),
        "path": notes.pop(FILEPATH, ""),
        "chunks": notes.pop("shoal.chunks", None),
    }
    return BundleFile.from_value({**notes, **known, "digest": d.digest, "size": d.size})
