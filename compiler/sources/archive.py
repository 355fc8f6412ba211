"""Zip archives, checked before anything opens them for good: none may unpack to more than it should."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from compiler.errors import Malformed

GROWTH = 20
"""How many times its own size an archive may unpack to. Weights hardly shrink, and TorchScript stores them as is."""
_SMALL = 1024 * 1024
"""What any archive may unpack to: text in a small one shrinks well."""
_CHUNK = 1024 * 1024


def check_zip(path: Path) -> tuple[str, ...]:
    """The names of the entries of a sound archive. Raises `Malformed` for a corrupt one, and for a zip bomb.

    Both the sizes that the archive declares and those that its entries really unpack to are bounded.
    """
    size = path.stat().st_size
    limit = max(size * GROWTH, _SMALL)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_declared(path, entries, size, limit)
            left = limit
            for entry in entries:
                left -= _unpacked(archive, entry, left, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as e:
        # RuntimeError: an encrypted entry; NotImplementedError: a compression that Python does not know.
        raise Malformed(f"source {path}: not a sound zip archive: {e}: copy it again") from e
    return tuple(entry.filename for entry in entries)


def _check_declared(path: Path, entries: list[zipfile.ZipInfo], size: int, limit: int) -> None:
    if sum(entry.file_size for entry in entries) > limit:
        raise _bomb(path, limit)
    # Entries that lie on top of each other let a small archive unpack to any size.
    if sum(entry.compress_size for entry in entries) > size:
        raise Malformed(f"source {path}: its entries overlap: a zip bomb, or corrupt: it is not opened")


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int, path: Path) -> int:
    found = 0
    with archive.open(entry) as file:
        while chunk := file.read(_CHUNK):
            found += len(chunk)
            if found > limit:
                raise _bomb(path, limit)
    return found


def _bomb(path: Path, limit: int) -> Malformed:
    return Malformed(f"source {path}: a zip bomb: it unpacks to more than {limit} bytes: it is not opened")
