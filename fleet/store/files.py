"""Writing files so that a power cut leaves the old one or the new one, and secrets so that only we read them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fleet.errors import StorageFull

UNFINISHED = ".new-"
"""How the name of a file begins that is not whole yet."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file that appears under `path`, whole and synced, when the block ends well; else nothing is left.

    Raises `StorageFull` when the disk has no room.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        if e.errno in _NO_ROOM:
            raise StorageFull(f"{path.parent}: no room left on the disk: nothing was stored: free some") from e
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a whole file at once. Raises `StorageFull`."""
    with atomic(path, mode=mode) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user may enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
