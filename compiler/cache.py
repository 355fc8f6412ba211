"""Earlier results by the digest of everything that decides them. Looking one up imports nothing heavy.

The key covers source, test set, profile, accuracy limit, the versions of the tools, the processor's kind and the
compiler's own code: a hit is what a new build would give. Blobs are verified when they are copied out.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compiler.errors import CompilerError, Unavailable
from compiler.layout import blob_path, verify
from compiler.made import Made
from wire.chunks import digest
from wire.document import dump_json
from wire.errors import WireError
from wire.profile import Profile

TOOLS = (
    *("torch", "transformers", "tokenizers", "kitoken", "numpy", "onnx", "onnxruntime"),
    *("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
)
X86_ONLY = ("litert-torch", "ai-edge-quantizer")
"""Not installed where their converter has no wheel: ONNX recipes need none of them."""


@cache
def tool_versions() -> Mapping[str, str]:
    """Installed versions of everything that shapes a bundle's bytes or figures; "absent" for what may be."""
    return {tool: _version(tool) for tool in TOOLS}


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        if tool not in X86_ONLY:
            raise
        return "absent"


@cache
def code_digest() -> str:
    """Digest of the code of compiler and contract: another compiler has another cache."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.with_name("wire").glob("*.py")])
    return digest(b"".join(p.name.encode() + b"\0" + hashlib.sha256(p.read_bytes()).digest() for p in files))


def key(*, source: str, test_set: str, profile: Profile, max_drop: float) -> str:
    """The digest under which a result is kept."""
    parts = {
        "source": source,
        "test_set": test_set,
        "profile": profile.to_value(),
        "max_drop": max_drop,
        "tools": dict(tool_versions()),
        "code": code_digest(),
        "machine": platform.machine(),
    }
    return digest(dump_json(parts))


class Cache:
    """A folder of earlier results: `blobs/sha256/*` and `made/*.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Made | None:
        """An earlier result whose blobs are all there and unchanged, or None."""
        try:
            made = Made.from_bytes(self._entry(key).read_bytes())
            for file in made.files:
                verify(blob_path(self.folder, file.digest), file.digest)
        except (FileNotFoundError, WireError, CompilerError):
            return None  # damaged is as good as absent: it is made again
        return made

    def put(self, key: str, made: Made, blobs: Mapping[str, bytes]) -> Made:
        """Keep a result. Raises `Unavailable` when the disk does not take it."""
        try:
            for name, data in blobs.items():
                _write_whole(blob_path(self.folder, name), data)
            _write_whole(self._entry(key), made.to_bytes())
        except OSError as e:
            raise Unavailable(
                f"cache {self.folder}: cannot be written: {e.strerror}; name a folder with free space"
            ) from e
        return made

    def read(self, digest: str) -> bytes:
        """A blob of a result that `get` or `put` returned."""
        return blob_path(self.folder, digest).read_bytes()

    def _entry(self, key: str) -> Path:
        return self.folder / "made" / f"{key.removeprefix('sha256:')}.json"


def _write_whole(path: Path, data: bytes) -> None:
    """All of the file or none of it, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
