"""What the HTTPS door takes from anybody: rate, size and time, before a request is read or its sender is known.

`Door` is the ASGI layer: requests per second and source, and the size of bodies. `Guarded` is the protocol below it:
headers and silence. `fleet.api.server` stands below TLS: connections. All bound the memory that a flood can take.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet.errors import FleetError, TooLarge, TooMany
from fleet.limits import Buckets
from fleet.limits import source as counted_as

EXPENSIVE = ("/.well-known/est/", "/api/v1/sessions", "/api/v1/renewals")
"""Routes that anybody may call and that cost a signature or a password hash: a tenth of the rate."""
CONNECTION: Final = "shoal.connection"
"""Of a request's scope, among its extensions: its `Guarded` connection."""
ANYBODYS = 64 * 1024
"""Bytes of a body on those routes: it is held, and parsed, before anybody knows who sends it."""


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
        limit, remedy = self._body, ": raise the setting max_body"
        if scope["path"].startswith(EXPENSIVE) and limit > ANYBODYS:
            limit, remedy = ANYBODYS, ""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > limit:
            raise _too_large(scope, limit, remedy)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _too_large(scope, limit, remedy)
            return message

        return counted


def _too_large(scope: Scope, limit: int, remedy: str) -> TooLarge:
    return TooLarge(f"{scope['path']}: the body is over {limit} bytes{remedy}")


def _source(scope: Scope) -> str:
    client = scope.get("client")
    return counted_as(str(client[0])) if client else "unknown"


@dataclass(frozen=True)
class Limits:
    """Bytes of a header; seconds for a header, and of silence in a body."""

    header: int = 32 * 1024
    header_within: float = 10.0
    silence: float = 30.0


class Together:
    """A transport whose writes of one round of the loop go out as one: a head and its body are one TLS record."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write before the loop does anything that comes later."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        """Close once all of it is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol, which would buffer an endless header and wait for a silent sender for ever."""

    limits: ClassVar[Limits] = Limits()
    _due: asyncio.TimerHandle | None = None
    _deadline: float | None = None
    """When the sender has to have gone on; the timer `_due` may be an earlier one, which then looks again."""
    _header = 0
    _reading_header = True
    _reading = True
    """A header or a body is on its way; false while the answer is made and sent."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection, its TLS handshake done."""
        self._lost: set[Callable[[], None]] = set()
        super().connection_made(cast(asyncio.Transport, Together(transport, self.loop)))
        self._wait(self.limits.header_within)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._deadline = None
        if self._due is not None:
            self._due.cancel()
        super().connection_lost(exc)
        for told in list(self._lost):
            told()

    def when_lost(self, told: Callable[[], None]) -> Callable[[], None]:
        """Have something done when the client leaves. What comes back takes that back."""
        self._lost.add(told)
        return lambda: self._lost.discard(told)

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
        cast(dict[str, Any], self.scope)["extensions"] = {CONNECTION: self}

    def on_headers_complete(self) -> None:
        """Its header is whole."""
        self._reading_header, self._header = False, 0
        self._wait(self.limits.silence)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole: how long the answer takes is ours to say."""
        self._reading, self._header = False, 0
        self._deadline = None
        super().on_message_complete()

    def _wait(self, seconds: float) -> None:
        # One timer serves many requests: to set and cancel one at each step of each of them would cost more.
        self._deadline = self.loop.time() + seconds
        if self._due is not None and self._due.when() <= self._deadline:
            return
        if self._due is not None:
            self._due.cancel()
        self._due = self.loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._due = None
        if self._deadline is None:
            return
        if self._deadline > self.loop.time():
            self._due = self.loop.call_at(self._deadline, self._look)
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self.flow.read_paused:  # it is we who do not read: the sender is not to blame
            self._wait(self.limits.silence)
        elif not self.transport.is_closing():
            self.transport.abort()
