"""What the HTTPS door takes from anybody: rate, size and time, before a request is read or its sender is known.

`Door` is the ASGI layer: requests per second and source, and the size of bodies. `Guarded` is the protocol below it:
connections, their headers and their silence. Both bound the memory that a flood can take.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet.errors import FleetError, TooLarge, TooMany
from fleet.limits import Buckets

EXPENSIVE = ("/.well-known/est/", "/api/v1/sessions", "/api/v1/renewals")
"""Routes that anybody may call and that cost a signature or a password hash: a tenth of the rate."""


class Door:
    """Turns away what comes too fast or is too large. `answer` makes the response of an error."""

    def __init__(
        self, app: ASGIApp, *, rate: float, body: int, blobs: str, answer: Callable[[FleetError], ASGIApp]
    ) -> None:
        self._app, self._body, self._blobs, self._answer = app, body, blobs, answer
        self._any = Buckets(rate=rate, burst=10 * rate)
        self._expensive = Buckets(rate=rate / 10, burst=rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_rate(scope)
            limited = receive if scope["path"].startswith(self._blobs) else self._limited(scope, receive)
        except FleetError as e:
            await self._answer(e)(scope, receive, send)
            return
        await self._app(scope, limited, send)

    def _check_rate(self, scope: Scope) -> None:
        source, now = _source(scope), time.monotonic()
        wait = self._any.take(source, now)
        if scope["path"].startswith(EXPENSIVE):
            wait = wait or self._expensive.take(source, now)
        if wait:
            raise TooMany(f"{source}: too many requests: try again in {math.ceil(wait)} s", retry_after=wait)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that stops at the limit, announced or not. Uploads of blobs have a limit of their own."""
        error = TooLarge(f"{scope['path']}: the body is over {self._body} bytes: raise the setting max_body")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._body:
            raise error
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._body:
                raise error
            return message

        return counted


def _source(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


@dataclass(frozen=True)
class Limits:
    """Connections in all and from one source; bytes of a header; seconds for a header, and of silence in a body."""

    connections: int = 1000
    per_source: int = 200
    header: int = 32 * 1024
    header_within: float = 10.0
    silence: float = 30.0


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol, which would buffer an endless header and wait for a silent sender for ever."""

    limits: ClassVar[Limits] = Limits()
    _sources: ClassVar[Counter[str]] = Counter()
    _due: asyncio.TimerHandle | None = None
    _header = 0
    _reading_header = True
    _reading = True
    """A header or a body is on its way; false while the answer is made and sent."""

    @classmethod
    def with_limits(cls, limits: Limits) -> type[Self]:
        """The protocol with other limits, and a count of sources of its own."""
        return type(cls.__name__, (cls,), {"limits": limits, "_sources": Counter()})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection: one too many is cut at once."""
        super().connection_made(transport)
        self._counted_as = str(self.client[0]) if self.client else "unknown"
        self._sources[self._counted_as] += 1
        if len(self.connections) > self.limits.connections or self._sources[self._counted_as] > self.limits.per_source:
            transport.abort()
            return
        self._wait(self.limits.header_within)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._sources[self._counted_as] -= 1
        if not self._sources[self._counted_as]:
            del self._sources[self._counted_as]
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes: of a header, which has to be whole in time and small, or of a body, which has to go on."""
        self._header += len(data)
        super().data_received(data)
        if self._reading_header and self._header > self.limits.header and not self.transport.is_closing():
            self.send_400_response(f"the header is over {self.limits.header} bytes")
        elif self._reading and not self._reading_header:
            self._wait(self.limits.silence)

    def on_message_begin(self) -> None:
        """A request starts."""
        self._reading_header = self._reading = True
        self._wait(self.limits.header_within)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its header is whole."""
        self._reading_header, self._header = False, 0
        self._wait(self.limits.silence)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole: how long the answer takes is ours to say."""
        self._reading, self._header = False, 0
        self._stop_waiting()
        super().on_message_complete()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._due = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        if self.flow.read_paused:  # it is we who do not read: the sender is not to blame
            self._wait(self.limits.silence)
        elif not self.transport.is_closing():
            self.transport.abort()
