"""The cloud tier from a device: what is too big for it goes to the fleet's gateway under the device's certificate.

Blocking calls of the standard library in threads, one read at a time: the reader sets the pace, nothing piles up.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from agent.errors import Unavailable, Untrusted
from agent.identity import Identity, check_certificate

READ: Final = 16 * 1024


@dataclass(frozen=True)
class Reply:
    """The gateway's answer: `body` gives its bytes as they come, and closes the connection at its end."""

    status: int
    content_type: str
    body: AsyncIterator[bytes]


class Cloud:
    """The gateway of the fleet that this device belongs to."""

    def __init__(self, identity: Identity, timeout: float, now: Callable[[], datetime]) -> None:
        self._fleet = urlsplit(identity.joined.fleet)
        self._identity = identity
        self._timeout = timeout
        self._now = now
        self._context: ssl.SSLContext | None = None

    async def forward(self, path: str, body: bytes) -> Reply:
        """Post a request as it is. Raises `Unavailable` without an answer, `Untrusted` for a certificate."""
        connection, response = await asyncio.to_thread(self._post, path, body)
        content_type = response.getheader("Content-Type", "application/json")
        return Reply(response.status, content_type, _read(connection, response))

    def _post(self, path: str, body: bytes) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        if self._context is None:
            self._context = self._identity.tls()
        host, port = self._fleet.hostname or "", self._fleet.port or 443
        connection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self._context)
        try:
            connection.connect()
            check_certificate(connection.sock, self._now())
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            raise Unavailable(f"the cloud tier at {host}:{port} did not answer: {e or type(e).__name__}") from e
        except Untrusted:
            connection.close()
            raise


async def _read(connection: http.client.HTTPSConnection, response: http.client.HTTPResponse) -> AsyncIterator[bytes]:
    try:
        while data := await asyncio.to_thread(response.read1, READ):
            yield data
    except (OSError, http.client.HTTPException) as e:
        raise Unavailable(f"the cloud tier broke off its answer: {e or type(e).__name__}") from e
    finally:
        response.close()
        connection.close()
