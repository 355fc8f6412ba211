"""Fetching a blob over the line: ask by bitmap, take chunks in any order, ask again for what did not come.

Chunks are shared by every device that wants them and may be lost; the bitmap repairs. They are encrypted with the key
of their blob: nothing is asked for before that is here. A chunk that does not open, or whose digest differs, is never
stored: it is counted, asked for again, and refused for good after `bad_chunks` times.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from agent.blobs import Blobs, Partial
from agent.errors import AgentError, Keyless, Unavailable, Untrusted
from agent.install.keys import ChunkKeys
from agent.link import Link
from wire import topics
from wire.chunks import ChunkList, to_bitmap
from wire.errors import Untrusted as UntrustedByWire
from wire.messages import Want
from wire.secrecy import decrypt_chunk

LONGEST_WAIT = 60.0
"""Seconds between two requests while nothing comes."""


T = TypeVar("T")


async def to_the_end(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """Run in a thread; a cancellation waits for it, then undoes what it made.

    For work on files that the canceller touches next: a thread cannot be stopped, only waited for.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if running.exception() is None and undo is not None:
            undo(running.result())
        raise


class Fetcher:
    """Blobs under way. `on_bad(blob, reason)` hears of every chunk that is not what its list says, once per chunk."""

    def __init__(
        self,
        device: str,
        link: Link,
        store: Blobs,
        keys: ChunkKeys,
        *,
        timeout: float,
        bad_chunks: int,
        on_bad: Callable[[str, str], None],
    ) -> None:
        self._want = topics.Want(device)
        self._link = link
        self._store = store
        self._keys = keys
        self._timeout = timeout
        self._bad_chunks = bad_chunks
        self._on_bad = on_bad
        self._transfers: dict[str, _Transfer] = {}

    async def fetch(self, chunks: ChunkList, on_chunk: Callable[[int], None]) -> None:
        """Get a blob into the store; `on_chunk(n)` hears how many more chunks are here. Waits for the line.

        Raises `Untrusted` for chunks that stay wrong, `Unavailable` for the disk, `Keyless` where the key is not here:
        chunks that came stay.
        """
        if await asyncio.to_thread(self._store.is_sound, chunks.blob):
            on_chunk(len(chunks.chunks))
            return
        self._check_key(chunks.blob)
        partial = await to_the_end(lambda: self._store.begin(chunks), undo=Partial.close)
        transfer = _Transfer(chunks, partial, on_chunk)
        self._transfers[chunks.blob] = transfer
        try:
            on_chunk(len(chunks.chunks) - len(partial.missing))
            self._subscribe(transfer)
            await self._until_complete(transfer)
            await to_the_end(partial.finish)
        finally:
            del self._transfers[chunks.blob]
            self._link.unsubscribe(topics.every(topics.Chunk, digest=chunks.blob))
            partial.close()

    async def _until_complete(self, transfer: _Transfer) -> None:
        wait = self._timeout
        while transfer.partial.missing:
            self._check_key(transfer.chunks.blob)
            before = len(transfer.partial.missing)
            self._ask(transfer)
            await transfer.until_quiet(wait)
            wait = self._timeout if len(transfer.partial.missing) < before else min(2 * wait, LONGEST_WAIT)

    def _check_key(self, blob: str) -> None:
        if self._keys.get(blob) is None:
            raise Keyless(f"{blob}: the fleet has not sealed its key to this device")

    def _subscribe(self, transfer: _Transfer) -> None:
        self._link.subscribe(topics.every(topics.Chunk, digest=transfer.chunks.blob), qos=0)

    def _ask(self, transfer: _Transfer) -> None:
        count = len(transfer.chunks.chunks)
        missing = to_bitmap(transfer.partial.missing, count)
        want = Want(digest=transfer.chunks.blob, count=count, missing=missing)
        self._link.publish(self._want, want.to_bytes())

    def line_is_up(self) -> None:
        """The line came back: everything under way is asked for at once."""
        for transfer in self._transfers.values():
            self._subscribe(transfer)
            transfer.ask_again()

    def receive(self, topic: topics.Chunk, data: bytes) -> None:
        """A chunk came. It is opened, verified and written here and now, so that nothing piles up in memory."""
        transfer, key = self._transfers.get(topic.digest), self._keys.get(topic.digest)
        if transfer is None or key is None:
            return
        try:
            self._put(transfer, topic.index, key, data)
        except Untrusted as e:
            self._count_bad(transfer, topic.index, e)
        except UntrustedByWire as e:
            self._count_bad(transfer, topic.index, Untrusted(f"{transfer.chunks.blob}: {e}"))
        except Unavailable as e:
            transfer.fault = e
        transfer.heard()

    def _put(self, transfer: _Transfer, index: int, key: bytes, data: bytes) -> None:
        if not transfer.partial.holds(index) and transfer.partial.put(index, decrypt_chunk(key, index, data)):
            transfer.on_chunk(1)

    def _count_bad(self, transfer: _Transfer, index: int, error: Untrusted) -> None:
        index = min(
            index, len(transfer.chunks.chunks)
        )  # all beyond the end count as one: nobody fills memory with them
        transfer.bad[index] += 1
        if transfer.bad[index] == 1:
            self._on_bad(transfer.chunks.blob, str(error))
        if transfer.bad[index] >= self._bad_chunks:
            transfer.fault = Untrusted(f"{error}, {transfer.bad[index]} times: the source is damaged or tampered with")


class _Transfer:
    """One blob under way."""

    def __init__(self, chunks: ChunkList, partial: Partial, on_chunk: Callable[[int], None]) -> None:
        self.chunks = chunks
        self.partial = partial
        self.on_chunk = on_chunk
        self.bad: Counter[int] = Counter()
        self.fault: AgentError | None = None
        self._heard = asyncio.Event()
        self._again = False

    def heard(self) -> None:
        self._heard.set()

    def ask_again(self) -> None:
        self._again = True
        self._heard.set()

    async def until_quiet(self, wait: float) -> None:
        """Return when the blob is complete, nothing came for `wait` seconds, or it should be asked for again."""
        while self.partial.missing and not self._again:
            self._heard.clear()
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
                async with asyncio.timeout(wait):
                    await self._heard.wait()
            except TimeoutError:
                break
            if self.fault is not None:
                raise self.fault
        self._again = False
