"""Chunks over HTTPS: the same encrypted chunks, laid end to end, as a range of `GET /api/v1/blobs/{digest}/chunks`.

    async for index, data in ranges.chunks(chunk_list, first, last): ...

The way for what MQTT does not bring. A fleet that does not answer is left alone for a while: the other way goes on.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Final

from agent.errors import AgentError, Unavailable
from agent.identity.tls import Https
from wire.chunks import ChunkList
from wire.secrecy import TAG

log = logging.getLogger("agent.install.ranges")

LARGEST: Final = 4 * 1024 * 1024
"""Bytes of one request."""
TIMEOUT: Final = 20.0
"""Longest silence of the fleet in seconds."""
REST: Final = 30.0
"""Seconds without a request after one that failed."""


class Ranges:
    """The fleet's HTTPS port as a source of chunks. `clock` counts seconds."""

    def __init__(self, https: Https, clock: Callable[[], float] = time.monotonic) -> None:
        self._https, self._clock = https, clock
        self._rests_until = -REST

    @property
    def ready(self) -> bool:
        """Whether it may be asked now."""
        return self._clock() >= self._rests_until

    async def chunks(self, chunks: ChunkList, first: int, last: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """The chunks from `first` to `last`, encrypted and unverified. Raises `Unavailable`, and rests after it."""
        sizes = [ref.size + TAG for ref in chunks.chunks]
        start = sum(sizes[:first])
        end = start + sum(sizes[first : last + 1]) - 1
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, chunks.blob, start, end))
        try:
            connection, response = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise
        except AgentError as e:
            raise self._failed(str(e)) from e
        try:
            for index in range(first, last + 1):
                yield index, await self._read(connection, response, sizes[index])
        finally:
            response.close()
            connection.close()

    def _open(self, blob: str, start: int, end: int) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        path = f"/api/v1/blobs/{blob}/chunks"
        connection, response = self._https.request("GET", path, None, {"Range": f"bytes={start}-{end}"})
        if response.status != http.client.PARTIAL_CONTENT or response.length != end + 1 - start:
            response.close()
            connection.close()
            raise Unavailable(f"{self._https.address}{path}: answered {response.status} to a range of it")
        return connection, response

    async def _read(
        self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse, size: int
    ) -> bytes:
        reading = asyncio.ensure_future(asyncio.to_thread(response.read, size))
        try:
            data = await asyncio.shield(reading)
        except asyncio.CancelledError:
            if connection.sock is not None:  # a thread cannot be stopped, but what it waits for can
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
            await asyncio.wait([reading])
            reading.exception()
            raise
        except (OSError, http.client.HTTPException) as e:
            raise self._failed(f"{self._https.address} broke off its answer: {e or type(e).__name__}") from e
        if len(data) < size:
            raise self._failed(f"{self._https.address} broke off its answer")
        return data

    def _failed(self, reason: str) -> Unavailable:
        self._rests_until = self._clock() + REST
        log.info("no chunks over HTTPS for %.0f s: %s", REST, reason)
        return Unavailable(reason)


def runs(missing: Iterable[int], chunks: ChunkList) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbours among the missing chunks, none over `LARGEST` bytes."""
    first = last = -2
    size = 0
    for index in sorted(missing):
        if index != last + 1 or size + chunks.chunks[index].size > LARGEST:
            if last >= 0:
                yield first, last
            first, size = index, 0
        last, size = index, size + chunks.chunks[index].size
    if last >= 0:
        yield first, last


def _close(
    opening: asyncio.Future[tuple[http.client.HTTPSConnection, http.client.HTTPResponse]],
) -> None:
    if not opening.cancelled() and opening.exception() is None:
        connection, response = opening.result()
        response.close()
        connection.close()
