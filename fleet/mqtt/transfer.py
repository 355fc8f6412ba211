"""Chunks on their way to devices: wishes are gathered for a moment, then each chunk is sent once for all who want it.

A thread of its own, because it waits: for wishes, for the pace, for the broker. Nothing is verified here, devices
verify every chunk. Only blobs of listed releases are sent, so memory is bounded by the bitmaps of their chunks. A chunk
is encrypted with the key of its blob: whoever listens without that key, the broker too, has noise.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

from paho.mqtt.client import MQTTMessageInfo

from fleet.errors import NotFound, Untrusted
from fleet.mqtt.link import Link
from fleet.store.blobs import BlobStore
from fleet.trust.blob_keys import BlobKeys
from wire.chunks import ChunkList, from_bitmap
from wire.errors import Malformed, WireError
from wire.messages import Want
from wire.secrecy import encrypt_chunk
from wire.topics import Chunk

_LISTS_HELD = 16
_IN_FLIGHT = 8
"""Chunks handed to the client and not yet on the wire: bounds its memory."""
_STALLED = 5.0
_log = logging.getLogger(__name__)


class Wishes:
    """Which chunks are wanted: one set per blob, the blobs in the order in which they were first asked for."""

    def __init__(self) -> None:
        self._wanted: OrderedDict[str, set[int]] = OrderedDict()

    def add(self, digest: str, indexes: frozenset[int]) -> None:
        """Somebody wants these chunks."""
        if indexes:
            self._wanted.setdefault(digest, set()).update(indexes)

    def take(self) -> tuple[str, int] | None:
        """The next chunk to send: the lowest of the blob that waits longest, which then goes to the end of the line."""
        if not self._wanted:
            return None
        digest, indexes = self._wanted.popitem(last=False)
        index = min(indexes)
        indexes.discard(index)
        if indexes:
            self._wanted[digest] = indexes
        return digest, index

    def __bool__(self) -> bool:
        return bool(self._wanted)


class Transfer:
    """Sends chunks. `listed` gives the blobs that may be sent, with the digests of their chunk lists."""

    def __init__(
        self,
        link: Link,
        blobs: BlobStore,
        keys: BlobKeys,
        listed: Callable[[], Mapping[str, str | None]],
        *,
        gather: float,
        rate: int,
    ) -> None:
        self._link, self._blobs, self._keys, self._listed = link, blobs, keys, listed
        self._gather, self._rate = gather, rate
        self._wishes, self._changed = Wishes(), threading.Condition()
        self._stop = threading.Event()
        self._lists: OrderedDict[str, ChunkList] = OrderedDict()
        self._in_flight: deque[MQTTMessageInfo] = deque()
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; what was not sent is asked for again."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def want(self, want: Want) -> None:
        """Take a wish. Raises `Untrusted` for a blob that no release lists, wire's `Malformed` for a wrong bitmap."""
        listed = self._listed()
        if want.digest not in listed:
            raise Untrusted(f"wish for {want.digest}: no release lists this blob")
        indexes = from_bitmap(want.missing, want.count)
        name = listed[want.digest]
        count = len(self._chunk_list(name).chunks) if name else 1
        if want.count != count:
            raise Malformed(f"wish for {want.digest}: {want.count} chunks, the blob has {count}")
        with self._changed:
            self._wishes.add(want.digest, indexes)
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_wishes():
            self._stop.wait(self._gather)
            while not self._stop.is_set() and (wish := self._next()) is not None:
                self._send(*wish)

    def _wait_for_wishes(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._wishes or self._stop.is_set())
        return not self._stop.is_set()

    def _next(self) -> tuple[str, int] | None:
        with self._changed:
            return self._wishes.take()

    def _send(self, digest: str, index: int) -> None:
        try:
            data = self._read(digest, index)
        except (NotFound, WireError, OSError) as e:
            _log.error("chunk %d of %s was not sent: %s", index, digest, e)
            return
        info = self._link.publish(Chunk(digest, index).topic, data, qos=0)
        if info is None or info.rc != 0:
            return  # the link is down: the device asks again
        self._in_flight.append(info)
        if len(self._in_flight) >= _IN_FLIGHT:
            self._wait_for_the_wire()
        if self._rate:
            self._stop.wait(len(data) / self._rate)

    def _wait_for_the_wire(self) -> None:
        """Wait for the oldest chunk to leave. When it does not, the connection broke, and the rest is lost too."""
        oldest = self._in_flight.popleft()
        try:
            oldest.wait_for_publish(_STALLED)
        except (RuntimeError, ValueError) as e:  # paho: the connection ended, or its queue is full
            _log.info("a chunk was dropped: %s", e)
        if not oldest.is_published():
            self._in_flight.clear()

    def _read(self, digest: str, index: int) -> bytes:
        listed = self._listed()
        if digest not in listed:
            raise NotFound(f"blob {digest}: no longer listed")
        name = listed[digest]
        return encrypt_chunk(self._keys.of(digest, name), index, self._plain(digest, name, index))

    def _plain(self, digest: str, chunk_list: str | None, index: int) -> bytes:
        if chunk_list is None:
            return self._blobs.read(digest)
        chunks = self._chunk_list(chunk_list)
        if index >= len(chunks.chunks):  # another release, with another list, took the place of the one asked about
            raise NotFound(f"blob {digest}: has no chunk {index} any more")
        chunk = chunks.chunks[index]
        return self._blobs.read(digest, chunks.offsets[index], chunk.size)

    def _chunk_list(self, name: str) -> ChunkList:
        """A parsed chunk list, the few last used ones kept. Called from two threads."""
        with self._changed:
            if name not in self._lists:
                self._lists[name] = ChunkList.from_bytes(self._blobs.read(name))
            self._lists.move_to_end(name)
            while len(self._lists) > _LISTS_HELD:
                self._lists.popitem(last=False)
            return self._lists[name]
