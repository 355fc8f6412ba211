"""The cloud tier from a device: what is too big for it goes to the fleet's gateway under the device's certificate.

Blocking calls of the standard library in threads of their own, one read at a time: the reader sets the pace, nothing
piles up, and a cloud that stalls holds up nothing else on the device. Past `AT_ONCE` requests the answer is no.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from agent.errors import Unavailable
from agent.identity.tls import Https

READ: Final = 16 * 1024
AT_ONCE: Final = 8
"""Requests under way at one time, each with one thread."""
T = TypeVar("T")


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

    async def forward(self, path: str, body: bytes) -> Reply:
        """Post a request as it is. Raises `Unavailable` without an answer, `Untrusted` for a certificate."""
        if self._under_way >= AT_ONCE:
            raise Unavailable(f"{AT_ONCE} requests to the cloud tier are under way: try again in a moment")
        self._under_way += 1
        try:
            connection, response = await self._in_thread(self._post, path, body)
        except BaseException:
            self._under_way -= 1
            raise
        content_type = response.getheader("Content-Type", "application/json")
        return Reply(response.status, content_type, self._read(connection, response))

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _read(
        self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse
    ) -> AsyncGenerator[bytes, None]:
        try:
            while data := await self._in_thread(response.read1, READ):
                yield data
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"the cloud tier broke off its answer: {e or type(e).__name__}") from e
        finally:
            self._under_way -= 1
            response.close()
            connection.close()

    def _post(self, path: str, body: bytes) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        try:
            return self._https.post(path, body, {"Content-Type": "application/json"})
        except Unavailable as e:
            raise Unavailable(f"the cloud tier: {e}") from e
