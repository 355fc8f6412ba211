"""What this device may fetch: a release that its release role lists, for it, not below a floor, with its keys here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from agent.errors import AgentError
from agent.install.keys import ChunkKeys
from agent.store.blobs import Blobs
from agent.store.state import StateFile
from wire.admission import check_release
from wire.errors import Untrusted, WireError
from wire.release import Release
from wire.trust import TrustedSet


@dataclass(frozen=True)
class Missing:
    """A document or key on the way to a release is not here yet; in words."""

    reason: str


@dataclass(frozen=True)
class Releases:
    """The one way from a desired target to its release, for models that should run and for those to measure."""

    trusted: TrustedSet
    state: StateFile
    store: Blobs
    keys: ChunkKeys
    now: Callable[[], datetime]
    profile: str
    runtimes: frozenset[str]

    async def find(self, target: str, digest: str) -> Release | Missing:
        """The release of a target. Raises as `check` does for one that is here and must not be fetched."""
        try:
            release = self.trusted.release(target, self.now())
        except Untrusted as e:
            return Missing(str(e))
        self.check(release, digest)
        if await asyncio.to_thread(self._keyless, digest):
            return Missing("the fleet has not sealed the keys of this release to this device yet")
        return release

    def peek(self, target: str, digest: str) -> Release | None:
        """The release of a target if it is here and may be fetched; its keys are another matter."""
        try:
            release = self.trusted.release(target, self.now())
            self.check(release, digest)
        except WireError:
            return None
        return release

    def check(self, release: Release, digest: str) -> None:
        """Raises wire's `Untrusted` and `Incompatible`."""
        floor = self.state.floor(release.model)
        check_release(release, digest=digest, profile=self.profile, runtimes=self.runtimes, floor=floor)

    def _keyless(self, manifest: str) -> set[str]:
        """What this device needs of a bundle and could not read if it came; all it knows without its manifest."""
        try:
            needed = {manifest} | self.store.blobs_of(manifest)
        except (AgentError, WireError):  # damaged on the disk: it comes again
            needed = {manifest}
        return {blob for blob in needed if self.keys.get(blob) is None and not self.store.has(blob)}
