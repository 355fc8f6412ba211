"""The short way to a blob: a delta over one that is here, where the fleet offers it.

    deltas.take(desired.offers)           # with every newer desired state
    await deltas.bring(chunks, progress)  # as much of the blob as a delta gives; what is missing then is fetched

The chunks that a delta makes go the way of those that came over the line: each is verified against the signed list
before it is stored. So a damaged base costs a few chunks, and a delta that is gone, wrong or a lie costs its bytes; one
that ends the process when it is used costs that one start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from agent.errors import AgentError, Keyless, Unavailable, Untrusted
from agent.install.fetch import Fetcher, to_the_end
from agent.store.blobs import Blobs, Partial
from agent.store.state import StateFile
from wire.chunks import ChunkList, single
from wire.delta import LENGTH, DeltaHeader, split
from wire.document import dump_json
from wire.errors import Malformed, WireError
from wire.orders import DeltaOffer

log = logging.getLogger("agent.install.delta")

PATIENCE: Final = 60.0
"""Seconds without a chunk, on a line that is up, after which a delta counts as gone."""
_READ: Final = 64 * 1024
_REFUSED: Final = "refused-deltas"


def choose(
    offers: Iterable[DeltaOffer], blob: str, lacking: int, holds: Callable[[str], bool], refused: Iterable[str] = ()
) -> DeltaOffer | None:
    """The smallest delta to a blob whose base is here, if it is smaller than the chunks that are `lacking` (bytes)."""
    fits = [o for o in offers if o.blob == blob and o.delta not in refused and holds(o.base)]
    best = min(fits, key=_cost, default=None)
    return best if best is not None and _cost(best) < lacking else None


def _cost(offer: DeltaOffer) -> int:
    return offer.size + offer.chunks_size


class Deltas:
    """What the fleet offers now. `line_up()`: whether anything can come; `alarm(blob, reason)` hears of a lie."""

    def __init__(
        self,
        *,
        state: StateFile,
        store: Blobs,
        fetcher: Fetcher,
        line_up: Callable[[], bool],
        alarm: Callable[[str, str], None],
        patience: float = PATIENCE,
    ) -> None:
        self._state = state
        self._store = store
        self._fetcher = fetcher
        self._line_up = line_up
        self._alarm = alarm
        self._patience = patience
        self._offers = _read(state.offers())
        self._refused = _read_refused(state.recall(_REFUSED))

    def take(self, offers: tuple[DeltaOffer, ...]) -> None:
        """Those of a newer desired state. A disk that does not keep them costs a restart the short way, no more."""
        if offers == self._offers:
            return
        self._offers = offers
        try:
            self._state.keep_offers(dump_json([offer.to_value() for offer in offers]))
        except Unavailable as e:
            log.warning("the offered deltas are not kept: %s", e)

    def needed(self) -> set[str]:
        """Blobs that must stay for a delta that is under way."""
        open_ones = [o for o in self._offers if o.delta not in self._refused and not self._store.has(o.blob)]
        return {blob for offer in open_ones for blob in (offer.delta, offer.chunks) if blob is not None}

    async def bring(self, chunks: ChunkList, on_chunk: Callable[[], None]) -> None:
        """Put into the store what a delta makes of a blob. `on_chunk` hears that some of the delta came.

        Raises `Unavailable` for the disk; whatever else goes wrong, the blob is fetched as if there were no delta.
        """
        offer = await asyncio.to_thread(self._choose, chunks)
        if offer is None:
            return
        log.info("%s: a delta of %d bytes over %s is fetched", offer.blob, offer.size, offer.base)
        try:
            await self._fetch(offer, on_chunk)
            self._refuse(offer)
            await to_the_end(lambda: self._apply(offer, chunks))
        except (_Gone, Keyless, Untrusted) as e:
            log.warning("%s: its delta is not used: %s", offer.blob, e)
        except WireError as e:
            self._alarm(offer.delta, f"the delta that was offered for {offer.blob} is none: {e}")
        await asyncio.to_thread(self._forget, offer)

    def _choose(self, chunks: ChunkList) -> DeltaOffer | None:
        if not any(offer.blob == chunks.blob for offer in self._offers) or self._store.has(chunks.blob):
            return None
        offer = choose(self._offers, chunks.blob, self._store.lacking(chunks), self._store.has, self._refused)
        if offer is not None:
            try:
                self._store.check_room(self._store.missing({chunks.blob: chunks.size, offer.delta: offer.size}))
            except Unavailable as e:
                log.warning("%s: no room for its delta beside it: %s", chunks.blob, e)
                return None
        return offer

    # --- getting it -----------------------------------------------------------------------------------------------

    async def _fetch(self, offer: DeltaOffer, on_chunk: Callable[[], None]) -> None:
        """The delta into the store. Raises `_Gone`, and what the fetcher raises."""
        if offer.chunks is None:
            await self._patiently(single(offer.delta, offer.size), on_chunk)
            return
        await self._patiently(single(offer.chunks, offer.chunks_size), on_chunk)
        chunks = ChunkList.from_bytes(await asyncio.to_thread(self._store.read, offer.chunks))
        if (chunks.blob, chunks.size) != (offer.delta, offer.size):
            raise Malformed(f"{offer.chunks}: is not the chunk list of the delta {offer.delta}")
        await self._patiently(chunks, on_chunk)

    async def _patiently(self, chunks: ChunkList, on_chunk: Callable[[], None]) -> None:
        """Wait as long as something comes, or the line is down. Raises `_Gone`."""
        loop, was_up = asyncio.get_running_loop(), False
        while True:
            was_up = self._line_up()
            try:
                async with asyncio.timeout(self._patience) as limit:

                    def came(_count: int, limit: asyncio.Timeout = limit) -> None:
                        limit.reschedule(loop.time() + self._patience)
                        on_chunk()

                    await self._fetcher.fetch(chunks, came)
                    return
            except TimeoutError:
                if was_up and self._line_up():
                    raise _Gone(f"nothing of {chunks.blob} came for {self._patience:.0f} s") from None

    # --- using it -------------------------------------------------------------------------------------------------

    def _refuse(self, offer: DeltaOffer) -> None:
        """On disk before it is used: should that end the process, the next start fetches the file. Raises `_Gone`."""
        refused = {offer.delta, *(self._refused & {each.delta for each in self._offers})}
        try:
            self._state.remember(_REFUSED, json.dumps(sorted(refused)))
        except Unavailable as e:
            raise _Gone(str(e)) from e
        self._refused.add(offer.delta)

    def _apply(self, offer: DeltaOffer, chunks: ChunkList) -> None:
        """Make the blob's chunks. Raises wire's `Malformed` for a delta that is none, `_Gone`, and `Unavailable`."""
        partial = self._store.begin(chunks)
        try:
            wrong = self._put(offer, chunks, partial)
            lied = wrong > 0 and self._base_is_sound(offer.base)
        except OSError as e:
            raise _Gone(f"{offer.base} or the delta cannot be read: {e.strerror}: check the disk") from e
        finally:
            partial.close()
        if lied:
            raise Malformed(f"{wrong} of {len(chunks.chunks)} chunks that it makes are other ones")
        if wrong:
            log.error("%s: the disk changed it: %d chunks are fetched that a delta could not make", offer.base, wrong)

    def _put(self, offer: DeltaOffer, chunks: ChunkList, partial: Partial) -> int:
        """How many chunks came out wrong."""
        from wire.residual import restore  # noqa: PLC0415  numpy comes with a model, not with the agent

        with self._store.path(offer.delta).open("rb") as file, self._store.path(offer.base).open("rb") as base:
            header = _header(file, offer, chunks)
            self._check_base(header, os.fstat(base.fileno()).st_size)

            def read_base(at: int, size: int) -> bytes:
                base.seek(at)
                return base.read(size)

            blocks = restore(header, iter(lambda: file.read(_READ), b""), read_base)
            return sum(not _put(partial, i, data) for i, data in enumerate(_cut(blocks, chunks)))

    def _check_base(self, header: DeltaHeader, size: int) -> None:
        """Raises `Malformed` for a delta over a base of another size, `_Gone` where the disk cut the base."""
        if header.base_size == size:
            return
        if self._base_is_sound(header.base):
            raise Malformed(f"it lies over {header.base_size} bytes of {header.base}, which has {size}")
        raise _Gone(f"{header.base}: {size} of {header.base_size} bytes are here: check the disk")

    def _base_is_sound(self, base: str) -> bool:
        with self._store.path(base).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == base

    def _forget(self, offer: DeltaOffer) -> None:
        """It is used once, whatever came of it."""
        self._refused.add(offer.delta)
        for blob in (offer.delta, offer.chunks):
            if blob is not None:
                try:
                    self._store.remove(blob)
                except OSError as e:
                    log.warning("%s: stays until it is swept: %s", blob, e)


class _Gone(AgentError):
    """A delta that does not come."""


def _read(data: bytes) -> tuple[DeltaOffer, ...]:
    try:
        return tuple(DeltaOffer.from_value(value) for value in json.loads(data))
    except (ValueError, WireError) as e:  # written by another agent
        log.warning("the offered deltas are forgotten: %s", e)
        return ()


def _read_refused(text: str) -> set[str]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list):
        log.warning("the deltas that were refused are forgotten: they cannot be read")
        return set()
    return {str(one) for one in found}


def _header(file: BinaryIO, offer: DeltaOffer, chunks: ChunkList) -> DeltaHeader:
    """The header of a delta, whose stream follows then. Raises `Malformed` when it is not the one that was offered."""
    header, start = split(file.read(LENGTH + DeltaHeader.LIMIT))
    if (header.base, header.target) != (offer.base, offer.blob):
        raise Malformed(f"it makes {header.target} of {header.base}, not of {offer.base}")
    if header.target_size != chunks.size:
        raise Malformed(f"it makes {header.target_size} bytes, and {offer.blob} has {chunks.size}")
    file.seek(start)
    return header


def _cut(blocks: Iterable[bytes], chunks: ChunkList) -> Iterator[bytes]:
    """The blob's chunks out of its blocks, in order. Raises `Malformed` for less, and as soon as there is more."""
    held = bytearray()
    refs = iter(chunks.chunks)
    ref = next(refs, None)
    for block in blocks:
        held += block
        while ref is not None and len(held) >= ref.size:
            yield bytes(held[: ref.size])
            del held[: ref.size]
            ref = next(refs, None)
        if held and ref is None:
            break
    if held or ref is not None:
        raise Malformed(f"it makes another number of bytes than the {chunks.size} of {chunks.blob}")


def _put(partial: Partial, index: int, data: bytes) -> bool:
    """Whether a chunk is the one that the list names."""
    try:
        partial.put(index, data)
    except Untrusted:
        return False
    return True
