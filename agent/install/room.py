"""The figures of what the wanted models need and of what is left on this device, for `agent.capacity` to decide."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from agent.capacity import Need, Room, estimated_memory, misfits
from agent.errors import AgentError, Incompatible
from agent.install.releases import Releases
from agent.store.blobs import Blobs
from agent.update import ModelState, Placed
from wire.bundle import BundleManifest
from wire.errors import WireError
from wire.profile import Limits
from wire.release import Release


@dataclass(frozen=True)
class Rooms:
    """Without limits only the free room on the disk counts."""

    store: Blobs
    listed: Releases
    limits: Limits | None
    min_free: int

    async def check(self, name: str, models: Mapping[str, ModelState]) -> None:
        """Whether all that is wanted before and with this model fits. Raises `Incompatible` when there is no room.

        A model whose release is still on its way counts with what stands in its slots.
        """
        ranked = sorted(models.items(), key=lambda item: (item[1].rank, item[0]))
        releases = {other: self._release(model) for other, model in ranked}

        def decide() -> dict[str, str]:
            return misfits([self.need(other, model, releases[other]) for other, model in ranked], self.room())

        reason = (await asyncio.to_thread(decide)).get(name)
        if reason is not None:
            raise Incompatible(f"{name} does not fit: {reason}")

    def _release(self, model: ModelState) -> Release | None:
        if model.update is None or not model.busy:
            return None
        return self.listed.peek(model.update.target, model.update.digest)

    def room(self) -> Room:
        """What all models may take."""
        free = shutil.disk_usage(self.store.folder).free - self.min_free
        if self.limits is None:
            return Room(disk=1 << 62, free=free, memory=1 << 62)
        return Room(disk=self.limits.store_bytes, free=free, memory=self.limits.memory_bytes)

    def need(self, name: str, model: ModelState, release: Release | None) -> Need:
        """What one model needs. Blocking: it reads manifests."""
        held: dict[str, int] = {}
        for placed in (model.active, model.previous):
            held |= self._files(placed.digest) if placed is not None else {}
        stays = self._memory(model.active)
        if not model.busy or release is None:
            return Need(model=name, held=sum(held.values()), memory=stays, stays=stays, wants=False)
        assert model.update is not None
        files = self._files(release.digest)
        if files:
            new = {digest: size for digest, size in files.items() if digest not in held}
            coming, fetch = sum(new.values()), self.store.missing(new)
        else:
            coming = fetch = release.length + release.size
        loaded = model.update.memory or self._estimate(release.digest) or estimated_memory(release.size)
        taken = sum(held.values())
        return Need(model=name, held=taken, coming=coming, fetch=fetch, memory=max(stays, loaded), stays=stays)

    def _memory(self, placed: Placed | None) -> int:
        if placed is None:
            return 0
        return placed.memory or self._estimate(placed.digest)

    def _estimate(self, digest: str) -> int:
        """By what its runtime opens; 0 while the manifest is not here."""
        manifest = self._manifest(digest)
        loaded = sum(file.size for file in manifest.loaded) if manifest is not None else 0
        return estimated_memory(loaded) if loaded else 0

    def _files(self, digest: str) -> dict[str, int]:
        """Sizes of a bundle's blobs, its manifest among them; empty while that is not here."""
        manifest = self._manifest(digest)
        if manifest is None:
            return {}
        sizes = {file.digest: file.size for file in manifest.files}
        return {**sizes, manifest.config.digest: manifest.config.size, digest: len(self.store.read(digest))}

    def _manifest(self, digest: str) -> BundleManifest | None:
        try:
            return BundleManifest.from_bytes(self.store.read(digest))
        except (AgentError, WireError):  # absent, or damaged: it comes again
            return None
