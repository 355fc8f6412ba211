"""Whether the golden sets of the models of this device held when they were run last, for health and gates.

An update runs it before its switch and at the end of its probation; a model that answers again after a start of the
agent runs it once more, among the requests: what a memory card changed in between shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from agent.errors import AgentError, Incompatible
from agent.install.steps import golden_again
from agent.serving.bundles import Bundle
from agent.serving.service import Served
from agent.store.blobs import Blobs
from wire.errors import WireError

log = logging.getLogger("agent.install.golden")


class GoldenSets:
    """What is known since the agent started, by digest."""

    def __init__(self, store: Blobs) -> None:
        self._store = store
        self._held: dict[str, bool] = {}
        self._looking: set[asyncio.Task[None]] = set()

    def held(self, digests: Iterable[str]) -> dict[str, bool]:
        """Of these, those whose golden set was run."""
        return {digest: self._held[digest] for digest in sorted(set(digests) & self._held.keys())}

    def note(self, digest: str, *, held: bool) -> None:
        """It was run elsewhere."""
        self._held[digest] = held

    async def run(self, served: Served) -> None:
        """Where it serves. Raises `Incompatible` where it does not hold."""
        bundle = await asyncio.to_thread(Bundle.open, self._store, served.digest)
        try:
            await golden_again(served, bundle)
        except Incompatible:
            self._held[served.digest] = False
            raise
        self._held[served.digest] = True

    def soon(self, served: Served) -> None:
        """Beside what else happens; a language model is left alone, which would take minutes of its apps' time."""
        if served.pipeline.language is None:
            task = asyncio.create_task(self._look(served), name=f"golden set of {served.target}")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def stop(self) -> None:
        """Look no more."""
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)

    async def _look(self, served: Served) -> None:
        try:
            await self.run(served)
        except (AgentError, WireError) as e:
            log.error("%s: %s", served.target, e)  # noqa: TRY400  a reason, not a bug; it goes on answering
