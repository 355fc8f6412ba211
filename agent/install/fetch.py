"""Fetching a blob over the line: ask by bitmap, take chunks in any order, say what came, ask again for what did not.

Chunks are shared by every device that wants them and may be lost; the bitmap repairs, and a range over HTTPS where it
does not (`agent.install.pace.by_range`). They are encrypted with the key of their blob: nothing is asked for before
that is here. A chunk that does not open, or whose digest differs, is never stored: it is counted, asked for again, and
refused for good after `bad_chunks` times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from agent.errors import AgentError, Keyless, Unavailable, Untrusted
from agent.install.keys import ChunkKeys
from agent.install.pace import Pace, SlowWatch, by_range
from agent.install.ranges import Ranges, runs
from agent.line.link import Link
from agent.store.blobs import Blobs, Partial
from wire import topics
from wire.chunks import WHOLE, ChunkList, to_bitmap
from wire.errors import Untrusted as UntrustedByWire
from wire.messages import Want
from wire.secrecy import decrypt_chunk

log = logging.getLogger("agent.install.fetch")

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
    """Blobs under way. `on_bad(blob, reason)` hears of every chunk that is not what its list says, once per chunk.

    `slow`, bytes per second and seconds: below that `on_bad` hears of a transfer that is kept slow. `ranges`: the way
    for what the line does not bring, None where there is none.
    """

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
        slow: tuple[int, float] = (0, 1.0),
        ranges: Ranges | None = None,
    ) -> None:
        self._want = topics.Want(device)
        self._link = link
        self._store = store
        self._keys = keys
        self._timeout = timeout
        self._bad_chunks = bad_chunks
        self._on_bad = on_bad
        self._slow = slow
        self._ranges = ranges
        self._transfers: dict[str, _Transfer] = {}
        self.trouble = ""
        """Why what is under way is slow, in words; "" while it is not."""

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
        transfer = _Transfer(chunks, partial, on_chunk, Pace(self._timeout), SlowWatch(*self._slow))
        self._transfers[chunks.blob] = transfer
        try:
            on_chunk(len(chunks.chunks) - len(partial.missing))
            self._subscribe(transfer)
            await self._until_complete(transfer)
            await to_the_end(partial.finish)
        finally:
            del self._transfers[chunks.blob]
            self.trouble = ""
            self._leave(transfer)
            partial.close()

    # --- asking ---------------------------------------------------------------------------------------------------

    async def _until_complete(self, transfer: _Transfer) -> None:
        while not transfer.partial.complete:
            self._check_key(transfer.chunks.blob)
            transfer.seen = -1
            self._say(transfer)
            transfer.pace.asked(time.monotonic())
            await self._until_quiet(transfer)
            transfer.pace.gave_up()
            if self._ranges is not None and by_range(transfer.missing_bytes, transfer.pace.fruitless):
                await self._by_range(transfer, self._ranges)

    async def _until_quiet(self, transfer: _Transfer) -> None:
        """Return when the blob is complete, nothing came for a while, or it should be asked for again."""
        pace = transfer.pace
        while not (transfer.partial.complete or transfer.again):
            now = time.monotonic()
            self._look_whether_slow(transfer, now)
            if pace.report_in(now) <= 0:
                self._say(transfer)
                pace.reported(now)
            if pace.quiet_in(now) <= 0:
                return
            await transfer.news(min(pace.report_in(now), pace.quiet_in(now)))
        transfer.again = False

    def _check_key(self, blob: str) -> None:
        if self._keys.get(blob) is None:
            raise Keyless(f"{blob}: the fleet has not sealed its key to this device")

    def _subscribe(self, transfer: _Transfer) -> None:
        self._link.subscribe(topics.every(topics.Chunk, digest=transfer.chunks.blob), qos=0)

    def _say(self, transfer: _Transfer) -> None:
        """What is missing, and what came last."""
        count = len(transfer.chunks.chunks)
        missing = to_bitmap(transfer.partial.missing, count)
        want = Want(digest=transfer.chunks.blob, count=count, missing=missing, seen=transfer.seen)
        self._link.publish(self._want, want.to_bytes())

    def _leave(self, transfer: _Transfer) -> None:
        self._link.unsubscribe(topics.every(topics.Chunk, digest=transfer.chunks.blob))
        if transfer.chunks.size > WHOLE:  # the fleet does not wait for a reader of a small blob
            none = to_bitmap((), len(transfer.chunks.chunks))
            want = Want(digest=transfer.chunks.blob, count=len(transfer.chunks.chunks), missing=none)
            self._link.publish(self._want, want.to_bytes())

    def _look_whether_slow(self, transfer: _Transfer, now: float) -> None:
        rate = transfer.watch.look(now, up=self._link.up)
        if rate is None:
            return
        limit, after = self._slow
        self.trouble = f"kept slow: {rate:.0f} B/s over the last {after:.0f} s, expected at least {limit} B/s"
        self._on_bad(transfer.chunks.blob, f"{self.trouble}: check the link, the broker and who is between")

    def line_is_up(self) -> None:
        """The line came back: everything under way is asked for at once."""
        for transfer in self._transfers.values():
            self._subscribe(transfer)
            transfer.ask_again()

    # --- taking ---------------------------------------------------------------------------------------------------

    def receive(self, topic: topics.Chunk, data: bytes) -> None:
        """A chunk came. It is opened, verified and written here and now, so that nothing piles up in memory."""
        transfer = self._transfers.get(topic.digest)
        if transfer is not None:
            if topic.index < len(transfer.chunks.chunks):
                transfer.seen = topic.index
            transfer.pace.heard(len(data))
            self._take(transfer, topic.index, data)

    async def _by_range(self, transfer: _Transfer, ranges: Ranges) -> None:
        """Chunks over HTTPS, as long as it gives any."""
        for first, last in runs(transfer.partial.missing, transfer.chunks):
            if not ranges.ready:
                return
            try:
                async for index, data in ranges.chunks(transfer.chunks, first, last):
                    self._take(transfer, index, data)
                    transfer.raise_fault()
            except Unavailable as e:
                if transfer.fault is not None:
                    raise
                log.debug("%s: %s", transfer.chunks.blob, e)
                return

    def _take(self, transfer: _Transfer, index: int, data: bytes) -> None:
        key, new = self._keys.get(transfer.chunks.blob), False
        if key is None:
            return
        try:
            new = self._put(transfer, index, key, data)
        except Untrusted as e:
            self._count_bad(transfer, index, e)
        except UntrustedByWire as e:
            self._count_bad(transfer, index, Untrusted(f"{transfer.chunks.blob}: {e}"))
        except Unavailable as e:
            transfer.fault = e
        transfer.came(index, new=new)

    def _put(self, transfer: _Transfer, index: int, key: bytes, data: bytes) -> bool:
        if transfer.partial.holds(index) or not transfer.partial.put(index, decrypt_chunk(key, index, data)):
            return False
        transfer.on_chunk(1)
        return True

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

    def __init__(
        self, chunks: ChunkList, partial: Partial, on_chunk: Callable[[int], None], pace: Pace, watch: SlowWatch
    ) -> None:
        self.chunks = chunks
        self.partial = partial
        self.on_chunk = on_chunk
        self.pace = pace
        self.watch = watch
        self.bad: Counter[int] = Counter()
        self.fault: AgentError | None = None
        self.again = False
        """Whether it should be asked for at once."""
        self.seen = -1
        """The chunk that came last since it was asked for, whether it was good or not."""
        self._heard = asyncio.Event()

    @property
    def missing_bytes(self) -> int:
        """Bytes that are not here yet."""
        return sum(self.chunks.chunks[i].size for i in self.partial.missing)

    def came(self, index: int, *, new: bool) -> None:
        """A chunk came; `new`: it was missing."""
        if new:
            self.watch.came(self.chunks.chunks[index].size)
        self.pace.came(time.monotonic(), new=new)
        self._heard.set()

    def ask_again(self) -> None:
        self.again = True
        self._heard.set()

    def raise_fault(self) -> None:
        """Raises what ended this transfer."""
        if self.fault is not None:
            raise self.fault

    async def news(self, wait: float) -> None:
        """Return after `wait` seconds or when something came. Raises what ended this transfer."""
        self._heard.clear()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(wait):
                await self._heard.wait()
        except TimeoutError:
            return
        self.raise_fault()
