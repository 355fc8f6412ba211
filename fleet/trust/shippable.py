"""Whether what a release names is stored here, whole and fitting what was signed: asked before it is published.

faults = [*incomplete(release, blobs), *ambiguous(releases, blobs)]          # words; none means that it can ship
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fleet.errors import FleetError
from fleet.store.blobs import BlobStore
from wire.bundle import BundleFile, BundleManifest
from wire.chunks import ChunkList
from wire.errors import WireError
from wire.release import Release

MAX_PACKET: Final = 1024 * 1024
"""Largest MQTT packet in bytes: of a broker's own setting, and so of every document and chunk list."""
MAX_DOCUMENT: Final = MAX_PACKET - 1024


def incomplete(release: Release, blobs: BlobStore) -> Iterator[str]:
    """Why a newly listed release cannot be shipped, in words."""
    try:
        if not blobs.has(release.digest):
            yield f"{release.target}: its manifest {release.digest} was not uploaded: upload it first"
            return
        data = blobs.read(release.digest)
        manifest = BundleManifest.from_bytes(data)
    except WireError as e:
        yield f"{release.target}: {e}"
        return
    if len(data) != release.length:
        yield f"{release.target}: the manifest has {len(data)} bytes, the release says {release.length}"
    signed = (release.target, release.profile, release.runtime)
    if signed != (manifest.target, manifest.profile, manifest.runtime):
        yield (
            f"{release.target}: the manifest is of {manifest.target} for {manifest.profile}, {manifest.runtime}; "
            f"signed was {release.profile}, {release.runtime}"
        )
    if release.size and release.size != manifest.size:  # a device decides by it whether the bundle has room
        yield f"{release.target}: the files of the bundle have {manifest.size} bytes, the release says {release.size}"
    yield from _blob_faults(release, manifest, blobs)


def _blob_faults(release: Release, manifest: BundleManifest, blobs: BlobStore) -> Iterator[str]:
    sizes = {manifest.config.digest: manifest.config.size} | {f.digest: f.size for f in manifest.files}
    for digest, size in sizes.items():
        if not blobs.has(digest):
            yield f"{release.target}: its blob {digest} was not uploaded: upload it first"
        elif blobs.size(digest) != size:
            yield f"{release.target}: its blob {digest} has {blobs.size(digest)} bytes, the manifest says {size}"
    for file in manifest.files:
        if file.chunks is not None:
            yield from _chunk_faults(release, file, file.chunks, blobs)
        elif file.size > MAX_DOCUMENT:
            yield f"{release.target}: {file.path} has {file.size} bytes, at most {MAX_DOCUMENT} travel whole"


def _chunk_faults(release: Release, file: BundleFile, chunks: str, blobs: BlobStore) -> Iterator[str]:
    if not blobs.has(chunks):
        yield f"{release.target}: the chunk list {chunks} of {file.path} was not uploaded: upload it first"
        return
    if blobs.size(chunks) > MAX_DOCUMENT:
        yield f"{release.target}: the chunk list of {file.path} is over {MAX_DOCUMENT} bytes: use larger chunks"
        return
    try:
        listed = ChunkList.from_bytes(blobs.read(chunks))
    except WireError as e:
        yield f"{release.target}: the chunk list of {file.path}: {e}"
        return
    if (listed.blob, listed.size) != (file.digest, file.size):
        yield f"{release.target}: the chunk list of {file.path} is of {listed.blob}, {listed.size} bytes"


def ambiguous(releases: Iterable[Release], blobs: BlobStore) -> Iterator[str]:
    """Blobs that two releases cut in different ways, in words.

    A blob travels as the chunks of one list, under one key that is derived from both (`wire.secrecy.blob_key`).
    """
    lists: dict[str, tuple[str | None, str]] = {}
    for release in releases:
        for blob, chunks in _cuts(release, blobs):
            known, first = lists.setdefault(blob, (chunks, release.target))
            if known != chunks:
                yield (
                    f"{release.target}: cuts its blob {blob} as {chunks or 'one chunk'}, but {first} as "
                    f"{known or 'one chunk'}: compile it with the same chunks, or withdraw the other release"
                )


def _cuts(release: Release, blobs: BlobStore) -> Iterator[tuple[str, str | None]]:
    """Every file of a release with its chunk list; none for a manifest that is lost or not one."""
    try:
        manifest = BundleManifest.from_bytes(blobs.read(release.digest))
    except (FleetError, WireError):
        return
    yield release.digest, None
    yield manifest.config.digest, None
    yield from ((f.digest, f.chunks) for f in manifest.files)
    yield from ((f.chunks, None) for f in manifest.files if f.chunks is not None)
