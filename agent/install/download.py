"""The download of one bundle: its manifest, then the chunk lists, then every blob that is not here yet.

Where the fleet offers a delta over a blob that is here, and it is smaller than what is missing, it goes first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from agent.errors import Untrusted
from agent.install.delta import Deltas
from agent.install.fetch import Fetcher
from agent.store.blobs import Blobs
from wire.bundle import BundleFile, BundleManifest
from wire.chunks import WHOLE, ChunkList, single
from wire.release import Release

REPORT_EVERY: Final = 1.0
"""Seconds between two reports of progress."""


class Download:
    """Chunks `done` of `total`; the total is known once the chunk lists are here.

    Those of a delta are not counted: it makes many others at once. `heard` rises with every message of either.
    """

    def __init__(
        self, store: Blobs, fetcher: Fetcher, on_progress: Callable[[], None], deltas: Deltas | None = None
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._on_progress = on_progress
        self._deltas = deltas
        self._reported = 0.0
        self.done = 0
        self.total = 0
        self.heard = 0

    async def run(self, release: Release) -> None:
        """Fetch what is missing. Raises `Untrusted`, `Unavailable` and `WireError`."""
        manifest = await self._manifest(release)
        self._store.check_room(self._store.missing({f.digest: f.size for f in manifest.files}))
        blobs = [await self._chunks_of(manifest, file) for file in manifest.files if file.role != "chunks"]
        blobs.append(single(manifest.config.digest, manifest.config.size))
        self.total = sum(len(blob.chunks) for blob in blobs)
        for blob in blobs:
            if self._deltas is not None:
                await self._deltas.bring(blob, self._hear)
            await self._fetcher.fetch(blob, self._count)

    async def _manifest(self, release: Release) -> BundleManifest:
        if release.length > WHOLE:
            raise Untrusted(f"{release.target}: a manifest of {release.length} bytes, the limit is {WHOLE}")
        await self._fetcher.fetch(single(release.digest, release.length), _ignore)
        manifest = BundleManifest.from_bytes(await asyncio.to_thread(self._store.read, release.digest))
        said = (manifest.target, manifest.profile, manifest.runtime)
        if said != (release.target, release.profile, release.runtime):
            raise Untrusted(
                f"{release.target}: the manifest says {' '.join(said)}: another bundle was released under it"
            )
        return manifest

    async def _chunks_of(self, manifest: BundleManifest, file: BundleFile) -> ChunkList:
        if file.chunks is None:
            return single(file.digest, file.size)
        listed = next((f for f in manifest.files if f.role == "chunks" and f.digest == file.chunks), None)
        if listed is None or listed.size > WHOLE:
            raise Untrusted(f"{manifest.target}: {file.path} names a chunk list that the bundle does not hold")
        await self._fetcher.fetch(single(listed.digest, listed.size), _ignore)
        chunks = ChunkList.from_bytes(await asyncio.to_thread(self._store.read, listed.digest))
        if (chunks.blob, chunks.size) != (file.digest, file.size):
            raise Untrusted(f"{manifest.target}: the chunk list of {file.path} is that of another blob")
        return chunks

    def _hear(self) -> None:
        self.heard += 1

    def _count(self, chunks: int) -> None:
        self.done += chunks
        self._hear()
        if time.monotonic() - self._reported >= REPORT_EVERY:
            self._reported = time.monotonic()
            self._on_progress()


def _ignore(_chunks: int) -> None:
    """Manifest and chunk lists are not counted: the total is not known before them."""
