"""The figures of what the wanted models need and of what is left on this device, for `agent.capacity` to decide."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.capacity import Need, Room, estimated_memory, misfits
from agent.errors import AgentError, Incompatible
from agent.install.releases import Releases
from agent.shadowing import Shadow
from agent.store.blobs import Blobs
from agent.update import ModelState, Placed
from wire.bundle import BundleManifest
from wire.errors import WireError
from wire.profile import Limits
from wire.release import Release
from wire.units import show_size

SHADOW_ROOM: Final = 80 * 1024 * 1024
"""Bytes of memory that the process of a model in shadow takes beside the model: an interpreter, numpy, its runtime."""


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
        reason = await asyncio.to_thread(self._misfit, name, _ranked(models), self._releases(models), [])
        if reason is not None:
            raise Incompatible(f"{name} does not fit: {reason}")

    async def check_shadow(self, name: str, models: Mapping[str, ModelState]) -> None:
        """Whether the model in shadow of this one fits beside all that others need. Raises `Incompatible`."""
        shadow = models[name].shadow
        assert shadow is not None
        coming = self.listed.peek(shadow.wanted.target, shadow.wanted.digest)
        releases = self._releases(models)

        def decide() -> str | None:
            mine = self._shadow_need(name, shadow, coming, models)
            if 0 < shadow.wanted.memory < mine.memory:
                return f"it needs {show_size(mine.memory)} of memory, its budget is {show_size(shadow.wanted.memory)}"
            others = [
                self._stays(self._shadow_need(other, model.shadow, None, models))
                for other, model in models.items()
                if other != name and model.shadow is not None and model.shadow.here
            ]
            return self._misfit(mine.model, _ranked(models), releases, [*others, mine])

        reason = await asyncio.to_thread(decide)
        if reason is not None:
            raise Incompatible(f"the shadow of {name} does not fit: {reason}")

    async def fits_without_shadows(self, name: str, models: Mapping[str, ModelState]) -> bool:
        """Whether this model would fit if the files of those in shadow were not here."""
        shadows = [(other, model.shadow) for other, model in models.items() if model.shadow is not None]
        releases = self._releases(models)

        def decide() -> str | None:
            freed = sum(self._shadow_need(other, shadow, None, models).coming for other, shadow in shadows)
            return self._misfit(name, _ranked(models), releases, [], freed)

        return await asyncio.to_thread(decide) is None

    def _misfit(
        self,
        name: str,
        ranked: Sequence[tuple[str, ModelState]],
        releases: Mapping[str, Release | None],
        after: Sequence[Need],
        freed: int = 0,
    ) -> str | None:
        needs = [self.need(other, model, releases[other]) for other, model in ranked]
        room = self.room()
        return misfits([*needs, *after], replace(room, free=room.free + freed)).get(name)

    def _releases(self, models: Mapping[str, ModelState]) -> dict[str, Release | None]:
        return {name: self._release(model) for name, model in models.items()}

    def _shadow_need(
        self, name: str, shadow: Shadow, release: Release | None, models: Mapping[str, ModelState]
    ) -> Need:
        """What a model in shadow needs that no model in a slot has. Blocking: it reads manifests."""
        digest = shadow.wanted.digest
        placed = [p for model in models.values() for p in (model.active, model.previous) if p is not None]
        held = {blob for p in placed for blob in self._files(p.digest)}
        new = {blob: size for blob, size in self._files(digest).items() if blob not in held}
        whole = release.length + release.size if release is not None else 0
        coming = sum(new.values()) if new else whole
        estimate = self._estimate(digest) or (estimated_memory(release.size) if release is not None else 0)
        memory = shadow.memory or estimate + SHADOW_ROOM
        return Need(
            model=f"shadow of {name}", coming=coming, fetch=self.store.missing(new) if new else whole, memory=memory
        )

    def _stays(self, need: Need) -> Need:
        return replace(need, held=need.coming, coming=0, fetch=0, stays=need.memory, wants=False)

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


def _ranked(models: Mapping[str, ModelState]) -> list[tuple[str, ModelState]]:
    return sorted(models.items(), key=lambda item: (item[1].rank, item[0]))
