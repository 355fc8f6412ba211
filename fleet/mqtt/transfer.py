"""Chunks on their way to devices: wishes are gathered for a moment, then each chunk is sent once for all who want it.

A thread of its own, because it waits: for wishes, for readers (`fleet.mqtt.flow`), for the pace, for the broker.
Nothing is verified here, devices verify every chunk. Only blobs of listed releases are sent, so memory is bounded by
the bitmaps of their chunks. A chunk is encrypted with the key of its blob: whoever listens without that key, the broker
too, has noise.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Final

from paho.mqtt.client import MQTTMessageInfo

from fleet.errors import NotFound, Untrusted
from fleet.mqtt.flow import Flow
from fleet.mqtt.link import Link
from fleet.store.blobs import BlobStore
from fleet.trust.blob_keys import BlobKeys
from wire.chunks import ChunkList, from_bitmap
from wire.errors import Malformed, WireError
from wire.messages import Want
from wire.secrecy import encrypt_chunk
from wire.topics import Chunk

FORGET_AFTER: Final = 60.0
"""Seconds after which a blob that nobody wants is forgotten, with who read what of it."""
_LISTS_HELD = 16
_IN_FLIGHT = 8
"""Chunks handed to the client and not yet on the wire: bounds its memory."""
_STALLED = 5.0
_BEHIND = 0.05
"""Seconds by which the pace may be made up for after a pause."""
_log = logging.getLogger(__name__)


class EncryptedChunks:
    """The blobs that may be sent, chunk by chunk, as they travel. Used from any thread.

    `listed` gives those blobs, with the digests of their chunk lists.
    """

    def __init__(self, blobs: BlobStore, keys: BlobKeys, listed: Callable[[], Mapping[str, str | None]]) -> None:
        self._blobs, self._keys, self._listed = blobs, keys, listed
        self._lists: OrderedDict[str, ChunkList] = OrderedDict()
        self._lock = threading.Lock()

    def sizes(self, digest: str) -> tuple[int, ...]:
        """The sizes in bytes of a blob's chunks before encryption. Raises `Untrusted` when no release lists it."""
        name = self._name(digest)
        if name is None:
            return (self._blobs.size(digest),)
        return tuple(ref.size for ref in self._chunk_list(name).chunks)

    def read(self, digest: str, index: int) -> bytes:
        """A chunk, encrypted. Raises `Untrusted`, and `NotFound` when there is none of this index any more."""
        name = self._name(digest)
        return encrypt_chunk(self._keys.of(digest, name), index, self._plain(digest, name, index))

    def _name(self, digest: str) -> str | None:
        listed = self._listed()
        if digest not in listed:
            raise Untrusted(f"wish for {digest}: no release lists this blob")
        return listed[digest]

    def _plain(self, digest: str, chunk_list: str | None, index: int) -> bytes:
        if chunk_list is None:
            return self._blobs.read(digest)
        chunks = self._chunk_list(chunk_list)
        if index >= len(chunks.chunks):  # another release, with another list, took the place of the one asked about
            raise NotFound(f"blob {digest}: has no chunk {index} any more")
        chunk = chunks.chunks[index]
        return self._blobs.read(digest, chunks.offsets[index], chunk.size)

    def _chunk_list(self, name: str) -> ChunkList:
        """A parsed chunk list, the few last used ones kept."""
        with self._lock:
            if name not in self._lists:
                self._lists[name] = ChunkList.from_bytes(self._blobs.read(name))
            self._lists.move_to_end(name)
            while len(self._lists) > _LISTS_HELD:
                self._lists.popitem(last=False)
            return self._lists[name]


class Transfer:
    """Sends chunks. `gather` in seconds; `rate` in bytes per second, 0 as fast as broker and devices take them."""

    def __init__(self, link: Link, chunks: EncryptedChunks, *, gather: float, rate: int) -> None:
        self._link, self._chunks = link, chunks
        self._gather, self._rate = gather, rate
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._in_flight: deque[MQTTMessageInfo] = deque()
        self._due = 0.0
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self.published = 0
        """Bytes of chunks handed to the broker since the start."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; what was not sent is asked for again."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def want(self, device: str, want: Want, asked: float | None = None) -> None:
        """Take a wish that came at `asked`, by the monotonic clock.

        Raises `Untrusted` for a blob that no release lists, wire's `Malformed` for a wrong bitmap.
        """
        sizes = self._chunks.sizes(want.digest)
        if want.count != len(sizes):
            raise Malformed(f"wish for {want.digest}: {want.count} chunks, the blob has {len(sizes)}")
        missing = from_bitmap(want.missing, want.count)
        with self._changed:
            flow = self._flows.get(want.digest)
            if flow is None or flow.sizes != sizes:
                flow = self._flows[want.digest] = Flow(sizes, gather=self._gather)
            flow.hear(device, missing, want.seen, time.monotonic(), asked=asked)
            self._changed.notify()

    def _run(self) -> None:
        while not self._stop.is_set():
            wish = self._next()
            if wish is not None:
                self._send(*wish)

    def _next(self) -> tuple[str, int] | None:
        """The next chunk of the blob that was served longest ago; waits, and gives None, when nothing may go."""
        with self._changed:
            now = time.monotonic()
            for digest, flow in self._flows.items():
                if (index := flow.take(now)) is not None:
                    self._flows.move_to_end(digest)
                    return digest, index
            for idle in [d for d, flow in self._flows.items() if not flow and now - flow.used > FORGET_AFTER]:
                del self._flows[idle]
            if not self._stop.is_set():
                self._changed.wait(min([FORGET_AFTER, *(flow.wait(now) for flow in self._flows.values())]))
            return None

    def _send(self, digest: str, index: int) -> None:
        try:
            data = self._chunks.read(digest, index)
        except (NotFound, Untrusted, WireError, OSError) as e:
            _log.error("chunk %d of %s was not sent: %s", index, digest, e)
            return
        info = self._link.publish(Chunk(digest, index).topic, data, qos=0)
        if info is None or info.rc != 0:
            return  # the link is down: the device asks again
        self.published += len(data)
        self._in_flight.append(info)
        if len(self._in_flight) >= _IN_FLIGHT:
            self._wait_for_the_wire()
        if self._rate:
            self._keep_pace(len(data))

    def _keep_pace(self, size: int) -> None:
        now = time.monotonic()
        self._due = max(self._due, now - _BEHIND) + size / self._rate
        if self._due > now:
            self._stop.wait(self._due - now)

    def _wait_for_the_wire(self) -> None:
        """Wait for the oldest chunk to leave. When it does not, the connection broke, and the rest is lost too."""
        oldest = self._in_flight.popleft()
        try:
            oldest.wait_for_publish(_STALLED)
        except (RuntimeError, ValueError) as e:  # paho: the connection ended, or its queue is full
            _log.info("a chunk was dropped: %s", e)
        if not oldest.is_published():
            self._in_flight.clear()
