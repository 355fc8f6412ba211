"""Garbage collection: what no slot, no update under way and no measuring job needs is removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agent.errors import AgentError
from agent.install.fetch import to_the_end
from agent.store.blobs import Blobs
from wire.errors import WireError

log = logging.getLogger("agent.install.sweep")


class Sweeper:
    """`manifests()`: those whose files must stay, and `also()` other blobs. `alone`: held while files are used."""

    def __init__(
        self, store: Blobs, alone: asyncio.Lock, manifests: Callable[[], set[str]], also: Callable[[], set[str]] = set
    ) -> None:
        self._store = store
        self._alone = alone
        self._manifests = manifests
        self._also = also
        self._under_way: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """Collect when no download is under way: its files may not be known from a manifest yet."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._when_alone())

    async def now(self) -> None:
        """Collect; `alone` is held. Nothing is removed while a manifest cannot be read. A sick disk ends nothing."""
        try:
            await to_the_end(self._collect)
        except (AgentError, WireError, OSError) as e:
            log.warning("old files stay for now: %s", e)

    async def stop(self) -> None:
        """Wait for what is under way."""
        if self._under_way is not None:
            await self._under_way

    async def _when_alone(self) -> None:
        async with self._alone:
            await self.now()

    def _collect(self) -> None:
        manifests = self._manifests()
        self._store.collect(
            manifests | self._also() | {blob for digest in manifests for blob in self._store.blobs_of(digest)}
        )
