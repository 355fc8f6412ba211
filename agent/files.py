"""Small files of a device: mode 0600, on the disk before anybody hears of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import Unavailable


def write_private(path: Path, data: bytes) -> None:
    """Write and flush a file that only this user may read. The name is durable after `sync_folder`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def write_whole(path: Path, data: bytes) -> None:
    """The same for a file that stands in its folder already or may be read at any moment: whole, or as it was."""
    new = path.with_name(f"{path.name}.new")
    write_private(new, data)
    new.rename(path)
    sync_folder(path.parent)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Translate what the disk refuses into `Unavailable`."""
    try:
        yield
    except OSError as e:
        raise Unavailable(
            f"{e.filename or place}: not written: {e.strerror}: make room, or choose another --state"
        ) from e


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename alone is lost in a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
