"""The cloud tier from a device: what is too big for it goes to the fleet's gateway under the device's certificate.

Blocking calls of the standard library in threads of their own, one read at a time: the reader sets the pace, nothing
piles up, and a cloud that stalls holds up nothing else on the device. Past `AT_ONCE` requests the answer is no.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar

from agent.errors import Unavailable
from agent.identity.tls import Https

READ: Final = 16 * 1024
AT_ONCE: Final = 8
"""Requests under way at one time, each with one thread."""
T = TypeVar("T")
Posted = tuple[http.client.HTTPSConnection, http.client.HTTPResponse]


class Late(Unavailable):
    """The cloud tier took longer than the request has."""


@dataclass(frozen=True)
class Reply:
    """The gateway's answer: `body` gives its bytes as they come, and closes the connection at its end."""

    status: int
    content_type: str
    body: AsyncGenerator[bytes, None]


class Cloud:
    """The gateway of the fleet that this device belongs to.

    `tls` gives the context for each request. `now` is trusted time: what users said is not shown to a server whose
    certificate has expired by it, nor to any while a clock stands beyond that.
    """

    def __init__(
        self, fleet: str, tls: Callable[[], ssl.SSLContext], timeout: float, now: Callable[[], datetime]
    ) -> None:
        self._https = Https(fleet, tls, now, timeout)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="cloud")
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def forward(self, path: str, body: bytes, within: float | None = None) -> Reply:
        """Post a request as it is. Raises `Unavailable` without an answer, `Untrusted` for a certificate.

        `within`: seconds until the answer must have begun; `Late` after them. Where nobody waits for it any more the
        connection ends, so that nobody works on it; its thread counts as busy until it knows.
        """
        if self._under_way >= AT_ONCE:
            raise Unavailable(f"{AT_ONCE} requests to the cloud tier are under way: try again in a moment")
        self._under_way += 1
        line = _Line()
        call = self._threads.submit(self._post, path, body, within, line)
        try:
            connection, response = await asyncio.wait_for(asyncio.wrap_future(call), within)
        except BaseException as e:
            line.end()
            self._when_over(call, _given_up)
            if isinstance(e, TimeoutError):
                raise Late(f"the cloud tier gave no answer within {within:g} s") from e
            raise
        answer = self._read(connection, response, line)
        await anext(answer)  # begun, so that closing it ends the connection, even when nobody reads
        return Reply(response.status, response.getheader("Content-Type", "application/json"), answer)

    async def ask(self, path: str, body: bytes, *, within: float, most: int) -> bytes:
        """The whole answer, cut at `most` bytes. Raises `Late` after `within` seconds, and as `forward` does."""
        try:
            async with asyncio.timeout(within):
                reply = await self.forward(path, body, within)
                whole = await first_bytes(reply.body, most)
        except TimeoutError as e:
            raise Late(f"the cloud tier gave no whole answer within {within:g} s") from e
        if reply.status != http.client.OK:
            raise Unavailable(f"the cloud tier answered {reply.status}: its log says why")
        return whole

    async def room(self, within: float) -> None:
        """Wait until one more request may be under way, but no longer than `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while self._under_way >= AT_ONCE:
                    free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(free)
                    await free
        except TimeoutError:
            pass  # `forward` says so

    def _ended(self) -> None:
        self._under_way -= 1
        while self._waiting:
            free = self._waiting.popleft()
            if not free.done():  # nobody's time ran out meanwhile
                free.set_result(None)
                return

    async def _read(
        self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse, line: _Line
    ) -> AsyncGenerator[bytes, None]:
        """Nothing first, then the parts of the answer."""
        reading: Future[bytes] | None = None
        try:
            yield b""
            while data := await asyncio.wrap_future(reading := self._threads.submit(response.read1, READ)):
                yield data
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"the cloud tier broke off its answer: {e or type(e).__name__}") from e
        finally:
            line.end()
            self._when_over(reading, lambda _: _close(connection, response))

    def _when_over(self, call: Future[T] | None, end: Callable[[Future[T] | None], None]) -> None:
        """End what a call has to do with, and give its place back, once its thread is free: closing waits for that."""
        if call is None or call.done():
            end(call)
            self._ended()
            return
        loop = asyncio.get_running_loop()

        def over(_call: Future[T]) -> None:
            end(call)
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self._ended)

        call.add_done_callback(over)

    def _post(
        self, path: str, body: bytes, within: float | None, line: _Line
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        https = self._https
        if within is not None and within < https.timeout:
            https = replace(https, timeout=within + 1)
        try:
            return https.post(path, body, {"Content-Type": "application/json"}, line.connected)
        except Unavailable as e:
            raise Unavailable(f"the cloud tier: {e}") from e


class _Line:
    """The socket of a request, which the loop may end while a thread waits at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def connected(self, to: socket.socket) -> None:
        """In the thread of the request: it waits there from now on."""
        with self._lock:
            self._socket = socket.socket(fileno=os.dup(to.fileno()))
        if self._over:
            self.end()

    def end(self) -> None:
        """Who waits there wakes, and the other side knows."""
        with self._lock:
            self._over = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
                self._socket = None


def _given_up(call: Future[Posted] | None) -> None:
    """Nobody waits for the answer any more."""
    if call is not None and not call.cancelled() and call.exception() is None:
        _close(*call.result())


def _close(connection: http.client.HTTPSConnection, response: http.client.HTTPResponse) -> None:
    response.close()
    connection.close()


async def first_bytes(body: AsyncGenerator[bytes, None], most: int) -> bytes:
    """The first bytes of an answer; the rest is left, and the connection closed."""
    whole = b""
    async with aclosing(body) as parts:
        async for part in parts:
            whole += part
            if len(whole) >= most:
                break
    return whole[:most]
