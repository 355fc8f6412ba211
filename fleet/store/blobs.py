"""Blobs by digest in a folder: a file appears only whole, synced and with the digest that names it.

with blobs.receive(digest, limit=settings.max_blob) as receiver:
    receiver.write(piece)                 # as the pieces come
blobs.read(digest, offset, size)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fleet.errors import Malformed, NotFound, TooLarge
from fleet.store.files import UNFINISHED, atomic, private_folder
from wire.chunks import digest as digest_of
from wire.document import check_digest


class Receiver:
    """A blob on its way in."""

    def __init__(self, file: BinaryIO, digest: str, limit: int) -> None:
        self._file, self._digest, self._limit = file, digest, limit
        self._hash, self._size = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Take some more bytes. Raises `TooLarge`."""
        self._size += len(data)
        if self._size > self._limit:
            raise TooLarge(f"blob {self._digest}: over {self._limit} bytes: raise the setting max_blob")
        self._hash.update(data)
        self._file.write(data)

    def check(self) -> None:
        """Raises `Malformed` when the bytes so far have another digest than the name."""
        found = "sha256:" + self._hash.hexdigest()
        if found != self._digest:
            raise Malformed(f"blob {self._digest}: the bytes sent have digest {found}: send them again")


class BlobStore:
    """A folder of blobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        for unfinished in self._folder.glob(f"*/{UNFINISHED}*"):  # a killed fleet could not remove them
            unfinished.unlink()

    def path(self, digest: str) -> Path:
        """Where a blob is or would be. Raises wire's `Malformed` for what is no digest."""
        name = check_digest(digest, "blob").removeprefix("sha256:")
        return self._folder / name[:2] / name

    def has(self, digest: str) -> bool:
        """Whether a blob is here."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of a blob. Raises `NotFound`."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as e:
            raise _missing(digest) from e

    def read(self, digest: str, offset: int = 0, size: int = -1) -> bytes:
        """Part of a blob, or all of it. Raises `NotFound`. Who uses the bytes verifies them."""
        try:
            with self.path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as e:
            raise _missing(digest) from e

    @contextmanager
    def receive(self, digest: str, *, limit: int) -> Iterator[Receiver]:
        """Take a blob of at most `limit` bytes. It is stored when the block ends well, and else nothing is.

        Raises `TooLarge`, `StorageFull`, and `Malformed` when the bytes have another digest.
        """
        path = self.path(digest)
        private_folder(path.parent)
        with atomic(path) as file:
            receiver = Receiver(file, digest, limit)
            yield receiver
            receiver.check()

    def remove(self, digest: str) -> None:
        """Let go of a blob, if it is here."""
        self.path(digest).unlink(missing_ok=True)

    def add(self, data: bytes) -> str:
        """Store some bytes and give back their digest. Raises `StorageFull`."""
        digest = digest_of(data)
        with self.receive(digest, limit=len(data)) as receiver:
            receiver.write(data)
        return digest


def _missing(digest: str) -> NotFound:
    return NotFound(f"blob {digest}: not stored here: upload it with PUT /api/v1/blobs/{digest}")
