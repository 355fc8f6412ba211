"""The content-addressed store of a device: nothing unverified is ever stored.

    <folder>/<hex>           a whole blob, its SHA-256 checked
    <folder>/<hex>.partial   chunks at their offsets; each was verified before it was written

A partial file is read again at the start and checked chunk by chunk: whatever a crash tore is simply missing. A new
blob begins with the chunks that other blobs here have in common with it, by the chunk lists in this folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, Self

from agent.errors import Unavailable, Untrusted
from agent.files import sync_folder
from wire.bundle import BundleManifest
from wire.chunks import ChunkList, ChunkRef, digest
from wire.errors import WireError
from wire.units import show_size

log = logging.getLogger("agent.store.blobs")

FOLDER: Final = "blobs"
"""Where the store of a device stands in its state folder."""
_READ: Final = 1024 * 1024
_PARTIAL: Final = ".partial"
_LIST_STARTS: Final = b'{"blob":"'
"""How every chunk list begins (`wire.document` sorts the keys), and no other document does."""


class Blobs:
    """A folder of blobs by digest. Blocking: call it in a thread."""

    def __init__(self, folder: Path, min_free: int) -> None:
        self.folder = folder
        self._min_free = min_free
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a blob stands, or would."""
        return self.folder / name.removeprefix("sha256:")

    def has(self, name: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(name).is_file()

    def is_sound(self, name: str) -> bool:
        """Whether the whole blob is here with its digest. One that the disk changed is removed: it can come again."""
        path = self.path(name)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        except OSError as e:
            raise Unavailable(f"{path}: not readable: {e.strerror}: check the disk") from e
        if f"sha256:{found}" == name:
            return True
        path.unlink()
        return False

    def read(self, name: str) -> bytes:
        """A small blob's bytes, hashed again. Raises `Unavailable` when it is absent or the disk changed it."""
        try:
            data = self.path(name).read_bytes()
        except OSError as e:
            raise Unavailable(f"{self.path(name)}: not readable: {e.strerror}") from e
        if digest(data) != name:
            raise Unavailable(f"{self.path(name)}: the disk changed it: check the disk")
        return data

    def blobs_of(self, manifest: str) -> set[str]:
        """Digests of everything that a bundle's manifest names. Raises as `read` does; empty while it is not here."""
        if not self.has(manifest):
            return set()
        bundle = BundleManifest.from_bytes(self.read(manifest))
        return {bundle.config.digest, *(file.digest for file in bundle.files)}

    def begin(self, chunks: ChunkList) -> Partial:
        """Go on with a blob, or start it, with the chunks that other blobs here hold. Raises `Unavailable`."""
        partial = Partial.open(self.path(chunks.blob), chunks)
        try:
            self._reuse(chunks, partial)
        except BaseException:
            partial.close()
            raise
        return partial

    def lacking(self, chunks: ChunkList) -> int:
        """Bytes of the chunks that neither this blob's partial file nor any whole blob here holds.

        What whole blobs hold is told by their lists, unread: a chunk that the disk changed counts as held.
        """
        if self.has(chunks.blob):
            return 0
        held = self._held_of(chunks)
        here = {ref.digest for other in self._lists() if self.has(other.blob) for ref in other.chunks}
        return sum(ref.size for i, ref in enumerate(chunks.chunks) if i not in held and ref.digest not in here)

    def _held_of(self, chunks: ChunkList) -> set[int]:
        try:
            with self.path(chunks.blob).with_suffix(_PARTIAL).open("rb") as file:
                return _verified(file.fileno(), chunks)
        except FileNotFoundError:
            return set()
        except OSError as e:
            raise Unavailable(f"{self.path(chunks.blob)}: not readable: {e.strerror}: check the disk") from e

    def _reuse(self, chunks: ChunkList, partial: Partial) -> None:
        """Copy what other blobs have in common with this one. Every chunk is verified before it counts."""
        if len(chunks.chunks) == 1:
            return  # it is small: to look for it costs more than to fetch it
        wanted = {chunks.chunks[i].digest: i for i in partial.missing}
        for other in self._lists():
            if not wanted:
                return
            if other.blob == chunks.blob or wanted.keys().isdisjoint(ref.digest for ref in other.chunks):
                continue
            for ref, data in self._chunks_of(other, wanted):
                try:
                    partial.put(wanted[ref.digest], data)
                except Untrusted as e:
                    log.warning("%s: a chunk of it is not used again: %s", other.blob, e)
                else:
                    del wanted[ref.digest]

    def _chunks_of(self, other: ChunkList, wanted: Collection[str]) -> Iterator[tuple[ChunkRef, bytes]]:
        """Those chunks of a whole or partial blob, unverified: nothing where the blob is not here."""
        path = self.path(other.blob)
        for candidate in (path, path.with_suffix(_PARTIAL)):
            try:
                with candidate.open("rb") as file:
                    for ref, offset in zip(other.chunks, other.offsets, strict=True):
                        if ref.digest in wanted:
                            yield ref, os.pread(file.fileno(), ref.size, offset)
            except FileNotFoundError:
                continue
            except OSError as e:
                log.warning("%s: its chunks are not used again: %s", candidate, e)
            return

    def _lists(self) -> Iterator[ChunkList]:
        """The chunk lists in this folder: those of the blobs that slots and updates name. A damaged one is passed."""
        for path in sorted(self.folder.iterdir()):
            try:
                with path.open("rb") as file:
                    if path.suffix or file.read(len(_LIST_STARTS)) != _LIST_STARTS:
                        continue
                    file.seek(0)
                    yield ChunkList.from_bytes(file.read(ChunkList.LIMIT))
            except (OSError, WireError) as e:
                log.warning("%s: not used as a chunk list: %s", path, e)

    def check_room(self, needed: int) -> None:
        """Raises `Unavailable` when `needed` more bytes would leave less than the room that must stay free."""
        free = shutil.disk_usage(self.folder).free
        if free < needed + self._min_free:
            raise Unavailable(
                f"{self.folder}: {show_size(free)} free, the update needs {show_size(needed)}"
                f" and leaves {show_size(self._min_free)}: make room"
            )

    def missing(self, sizes: dict[str, int]) -> int:
        """Bytes still to be written for blobs of these sizes, partial files counted as room already taken."""
        return sum(max(0, size - self._taken(name)) for name, size in sizes.items() if not self.has(name))

    def _taken(self, name: str) -> int:
        partial = self.path(name).with_suffix(_PARTIAL)
        return partial.stat().st_blocks * 512 if partial.exists() else 0

    def remove(self, name: str) -> None:
        """Remove a blob that nothing needs any more, or what came of it. Raises OSError."""
        for path in (self.path(name), self.path(name).with_suffix(_PARTIAL)):
            path.unlink(missing_ok=True)

    def collect(self, keep: Collection[str]) -> int:
        """Remove every blob and partial file that is not in `keep` (digests). How many bytes came free.

        Raises `Unavailable` for a disk that does not let go of one.
        """
        names = {name.removeprefix("sha256:") for name in keep}
        try:
            paths = [path for path in self.folder.iterdir() if path.name.removesuffix(_PARTIAL) not in names]
            return sum(map(_remove, paths))
        except OSError as e:
            raise Unavailable(f"{e.filename or self.folder}: not removed: {e.strerror}: check the disk") from e


class Partial:
    """A blob that is coming: chunks go in, in any order, any number of times."""

    def __init__(self, path: Path, chunks: ChunkList, fd: int, held: set[int]) -> None:
        self._path = path
        self._chunks = chunks
        self._fd = fd
        self._held = held

    @classmethod
    def open(cls, path: Path, chunks: ChunkList) -> Self:
        """Open the partial file of a blob and find the chunks that it holds."""
        try:
            fd = os.open(path.with_suffix(_PARTIAL), os.O_RDWR | os.O_CREAT, 0o600)
            fresh = os.fstat(fd).st_size == 0
            os.ftruncate(fd, chunks.size)  # a list that was refused may have left more
        except OSError as e:
            raise Unavailable(f"{path}: cannot be written: {e.strerror}") from e
        return cls(path, chunks, fd, set() if fresh else _verified(fd, chunks))

    @property
    def missing(self) -> frozenset[int]:
        """Indexes of the chunks that are not here yet."""
        return frozenset(range(len(self._chunks.chunks))) - self._held

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return len(self._held) == len(self._chunks.chunks)

    def holds(self, index: int) -> bool:
        """Whether this chunk is here."""
        return index in self._held

    def put(self, index: int, data: bytes) -> bool:
        """Write a chunk if it is missing; whether it was. Raises `Untrusted` when the bytes have another digest."""
        if index >= len(self._chunks.chunks):
            raise Untrusted(f"{self._chunks.blob}: chunk {index} of {len(self._chunks.chunks)}")
        if index in self._held:
            return False
        ref = self._chunks.chunks[index]
        if len(data) != ref.size or digest(data) != ref.digest:
            raise Untrusted(f"{self._chunks.blob}: chunk {index} came with another digest than {ref.digest}")
        try:
            os.pwrite(self._fd, data, self._chunks.offsets[index])
        except OSError as e:
            raise Unavailable(f"{self._path}: not written: {e.strerror}: make room on the disk") from e
        self._held.add(index)
        return True

    def finish(self) -> None:
        """Check the whole blob, make it durable and give it its name. Raises `Untrusted`, `Unavailable`."""
        partial = self._path.with_suffix(_PARTIAL)
        if f"sha256:{self._whole_sha256()}" != self._chunks.blob:
            partial.unlink()
            raise Untrusted(f"{self._chunks.blob}: its chunks add up to another blob: the chunk list is wrong")
        try:
            os.fsync(self._fd)
            partial.rename(self._path)
            sync_folder(self._path.parent)
        except OSError as e:
            raise Unavailable(f"{self._path}: not made durable: {e.strerror}: check the disk") from e

    def close(self) -> None:
        """Let go of the file; what was verified stays."""
        os.close(self._fd)

    def _whole_sha256(self) -> str:
        whole = hashlib.sha256()
        for offset in range(0, self._chunks.size, _READ):
            whole.update(os.pread(self._fd, min(_READ, self._chunks.size - offset), offset))
        return whole.hexdigest()


def _remove(path: Path) -> int:
    """How many bytes came free."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def _verified(fd: int, chunks: ChunkList) -> set[int]:
    """The chunks that stand in a file at their offsets with their digests."""
    pairs = enumerate(zip(chunks.chunks, chunks.offsets, strict=True))
    return {i for i, (ref, offset) in pairs if digest(os.pread(fd, ref.size, offset)) == ref.digest}
