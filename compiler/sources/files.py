"""Reading the files of a source: each failure names the path, and nothing is trusted for its size or place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible, Malformed

LARGEST = 4 * 1024**3
"""Bytes of a source. What a small device serves is far below, and the compiler holds a model in memory."""
_HEADER = 100 * 1024 * 1024


def read_bytes(path: Path, hint: str) -> bytes:
    """The content. Raises `Malformed`; `hint` says what to do where the file is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise Malformed(f"source {path}: missing: {hint}") from e
    except OSError as e:
        raise Malformed(f"source {path}: cannot be read: {e.strerror}") from e


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `Malformed`."""
    value = parse_json(path)
    if not isinstance(value, dict):
        raise Malformed(f"source {path}: expected a JSON object")
    return value


def parse_json(path: Path) -> object:
    """Any JSON value. Raises `Malformed`."""
    try:
        return json.loads(read_bytes(path, "a source model holds this file"))
    except (ValueError, RecursionError) as e:
        raise Malformed(f"source {path}: not valid JSON: {e}") from e


def inside(folder: Path, name: str, where: str) -> Path:
    """The file or folder `name` of `folder`. Raises `Malformed` for a path or link that leaves it.

    `where` says for people which file names it.
    """
    path = Path(name)
    # A name with a backslash or a drive is a path on another system: it has no honest use here.
    plain = name and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":", "\0"}
    if not plain or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise Malformed(f"{where}: path {name[:200]!r} leaves the folder; name a file inside {folder}")
    return folder / path


def check_size(path: Path, size: int) -> None:
    """Raises `Incompatible` for a source that is too large to be read."""
    if size > LARGEST:
        raise Incompatible(f"source {path}: {size} bytes, this compiler reads models of up to {LARGEST}")


def file_size(path: Path) -> int:
    """Bytes of a plain file. Raises `Malformed` when it is not there, `Incompatible` when it is too large."""
    if not path.is_file():
        raise Malformed(f"source {path}: no such file")
    size = path.stat().st_size
    check_size(path, size)
    return size


def digest_of(parts: Iterable[tuple[str, Path | bytes]]) -> str:
    """One digest over names and contents."""
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{name}\0{_sha256(content)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def check_safetensors(path: Path) -> None:
    """Raises `Malformed` when header and length of a safetensors file do not agree.

    The format: 8 bytes little-endian header length, JSON header, data; offsets end exactly at the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_HEADER, size - 8):
            raise Malformed(f"source {path}: not a safetensors file, or cut short: copy it again")
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
            raise Malformed(f"source {path}: its safetensors header is corrupt: copy it again") from e
    if not ends or max(ends) != size - 8 - length:
        raise Malformed(
            f"source {path}: {size} bytes, its header asks for {8 + length + max(ends, default=0)}: copy it again"
        )


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
