"""Source models that were uploaded: safetensors in Hugging Face layout, ONNX or TFLite, and nothing that runs code.

source = describe(files, blobs, limit)     # reads and checks; raises Malformed, NotFound, TooLarge
add(session, source, name, who, now)
lay_out(source_row, blobs, folder)         # the files, for a compiler
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlmodel import Session, col, select

from fleet.builds.content import CHECKS, check_index
from fleet.errors import Malformed, NotFound, TooLarge
from fleet.store.blobs import BlobStore
from fleet.store.tables import SourceRow
from wire.document import check_name

MOST_FILES: Final = 200
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DEPTH: Final = 3
_BESIDE: Final[Mapping[str, frozenset[str]]] = {
    "huggingface": frozenset({".json", ".txt", ".safetensors"}),
    "onnx": frozenset({".onnx", ".data", ".onnx_data"}),
    "tflite": frozenset({".tflite"}),
}
"""What may stand in a source of each kind, by its ending."""
TOKENIZER: Final = "tokenizer.json"
"""What the description of a graph that reads texts may name; it stands in a source of any kind."""


@dataclass(frozen=True)
class CheckedSource:
    """Files that were read and found to be a source: `files` as path, digest and size, by path."""

    digest: str
    kind: str
    files: tuple[tuple[str, str, int], ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self.files)


def describe(files: Mapping[str, str], blobs: BlobStore, limit: int) -> CheckedSource:
    """Check what was uploaded, by content: `files` are digests of blobs by path. Takes a while for large ones.

    Raises `Malformed` for a file that is none of a source, `NotFound` for a blob that is not here, `TooLarge`.
    """
    if not 1 <= len(files) <= MOST_FILES:
        raise Malformed(f"source: {len(files)} files, expected 1 to {MOST_FILES}")
    for path in files:
        check_path(path)
    kind = _kind(files)
    found = tuple((path, digest, blobs.size(digest)) for path, digest in sorted(files.items()))
    checked = CheckedSource(_digest(files), kind, found)
    if checked.size > limit:
        raise TooLarge(f"source: {checked.size} bytes, over {limit}: raise the setting max_source")
    for path, digest, _ in found:
        CHECKS[Path(path).suffix](blobs.path(digest), path)
        if path.endswith(".safetensors.index.json"):
            check_index(blobs.path(digest), path, files)
    return checked


def check_path(path: str) -> None:
    """Raises `Malformed` for a path that is not plain or leaves its folder."""
    parts = path.split("/")
    if len(parts) > _DEPTH or not all(_PART.fullmatch(part) for part in parts):
        raise Malformed(
            f"source: path {path[:200]!r}: expected up to {_DEPTH} names of letters, digits, '.', '_' and '-', "
            "none of which begins with '.'"
        )


def add(session: Session, source: CheckedSource, name: str, who: str, now: str) -> SourceRow:
    """Register a source. The same files again are the same source, under its first name."""
    row = session.get(SourceRow, source.digest)
    if row is None:
        row = SourceRow(
            digest=source.digest,
            name=check_name(name, "source.name"),
            kind=source.kind,
            files=json.dumps(source.files),
            size=source.size,
            who=who,
            created=now,
        )
        session.add(row)
    return row


def find(session: Session, digest: str) -> SourceRow:
    """A source. Raises `NotFound`."""
    row = session.get(SourceRow, digest)
    if row is None:
        raise NotFound(f"source {digest[:80]!r}: there is none: register it with POST /api/v1/sources")
    return row


def all_sources(session: Session) -> Sequence[SourceRow]:
    """Every source, the newest first."""
    return session.exec(select(SourceRow).order_by(col(SourceRow.created).desc())).all()


def view(row: SourceRow) -> dict[str, Any]:
    """What is told of a source."""
    files = [{"path": path, "digest": digest, "size": size} for path, digest, size in json.loads(row.files)]
    return {**row.model_dump(), "files": files}


def lay_out(row: SourceRow, blobs: BlobStore, folder: Path) -> Path:
    """Copy the files of a source into a new folder; gives what a compiler calls its source.

    Copies, because whoever compiles may write there, and a blob is for ever. Raises `NotFound`, `OSError`.
    """
    folder.mkdir()
    main = folder
    for name, digest, size in json.loads(row.files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if blobs.size(digest) != size:
            raise NotFound(f"blob {digest}: not as long as it was: put it back from a backup")
        shutil.copyfile(blobs.path(digest), path)
        main = path if path.suffix in (".onnx", ".tflite") else main
    return main


def _kind(files: Mapping[str, str]) -> str:
    suffixes = [Path(path).suffix for path in files]
    graphs = [s for s in suffixes if s in (".onnx", ".tflite")]
    kind = graphs[0].removeprefix(".") if graphs else "huggingface"
    strangers = sorted(path for path in files if Path(path).suffix not in _BESIDE[kind] and path != TOKENIZER)
    if strangers:
        raise Malformed(
            f"source: file {strangers[0]!r} has no place in a source of kind {kind}: send "
            f"{', '.join(sorted(_BESIDE[kind]))} and {TOKENIZER} only; pickled weights and code are never read"
        )
    if "adapter_config.json" in files:
        raise Malformed("source: an adapter names the model that it changes: merge it first, and save the whole model")
    if len(graphs) > 1:
        raise Malformed(f"source: {len(graphs)} models, expected one")
    if not graphs and ("config.json" not in files or ".safetensors" not in suffixes):
        raise Malformed("source: expected a folder with config.json and model.safetensors, one .onnx or one .tflite")
    return kind


def _digest(files: Mapping[str, str]) -> str:
    lines = "".join(f"{path}\0{digest}\n" for path, digest in sorted(files.items()))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
