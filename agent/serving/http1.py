"""HTTP/1.1 on one connection, parsed by httptools: requests in, replies out, in order.

Guarantees: a body over the limit is refused before it is read; one request of a connection is answered at a time, one
more may wait, and what a client sends ahead of that stays in its own buffers; an answer that takes time is cancelled
when the client leaves, and the parts of a stream are asked for only as fast as the client reads. A client that ends its
side has left.
"""

from __future__ import annotations

import asyncio
import logging
import math
import traceback
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools

from agent.errors import AgentError, Unavailable
from agent.serving.exchange import Reply, Request
from agent.serving.http_words import CONTINUE, Known, head_of, path_of
from agent.serving.hub import Door, Hub
from agent.serving.refusals import BadRequest, Busy, HeadTooLarge, TooLarge, TooSlow

HEAD: Final = 32 * 1024
"""Bytes of a request line with its header fields."""
HEAD_WITHIN: Final = 10.0
"""Seconds for them from their first byte."""
SILENCE: Final = 30.0
"""Seconds that a body may pause, or a client may leave a reply unread."""
IDLE: Final = 75.0
"""Seconds that a connection may wait for its next request."""
AHEAD: Final = 1
"""Requests that may wait behind the one under way while more is read: who sends none is seen to leave."""
LINGER: Final = 2.0
"""Seconds in which a client whose body is not wanted may read why: closing at once would take the reply from it."""
LINGERING: Final = 64
"""Connections over the limit that are told so; one more is cut."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asked:
    """A request that waits for its reply, and how that must look."""

    request: Request
    keep: bool
    chunked: bool
    bodiless: bool


@dataclass(slots=True)
class _Refused:
    """What is answered in the place of a reply, as the last thing on the connection."""

    path: str
    error: AgentError


class Connection(asyncio.BufferedProtocol):
    """One client. `deadline`: moment on the loop's clock at which it has been silent for too long.

    Each `door` has its own number of connections: who is at one cannot fill the other.
    """

    __slots__ = (
        *("_body", "_complete", "_deaf", "_drained", "_fields", "_head", "_hub", "_in_head", "_known", "_last"),
        *("_loop", "_named", "_parser", "_received", "_receiving", "_task", "_transport", "_url", "_waiting"),
        *("deadline", "door"),
    )

    def __init__(self, hub: Hub, door: Door | None, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self.door = door
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[_Asked | _Refused] = deque()
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._known: Known | None = None
        self._deaf = self._last = self._in_head = self._receiving = False
        self._head = self._named = self._complete = 0
        self._received = -1  # bytes of the body, from the end of the head on
        self._url, self._fields, self._body = b"", dict[str, str](), list[bytes]()
        self.deadline = math.inf

    # --- what the loop says ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        self._transport = cast(asyncio.Transport, transport)
        hub = self._hub
        here = sum(other.door is self.door for other in hub.connections)
        if here >= hub.most + LINGERING:
            self._transport.abort()
        if here >= hub.most:
            self._refuse(Busy(f"{hub.most} connections are open: close some, or raise the setting 'connections'"))
        hub.connections.add(self)
        # Who has to show something at a door has not shown it yet.
        self.deadline = self._loop.time() + (IDLE if self.door is None else HEAD_WITHIN)
        self._serve()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where what comes is put: one place for all connections, because it is parsed before the loop goes on."""
        return self._hub.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse it, and answer what is whole."""
        if self._deaf or self._came_again(nbytes):
            return
        began, complete, received = not self._receiving, self._complete, self._received
        try:
            self._parser.feed_data(self._hub.buffer[:nbytes])
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request is answered as it is, and nothing after it is read
        except httptools.HttpParserError as e:
            if not self._last:
                self._refuse(BadRequest(f"not HTTP/1.1: {e}"))
        if self._receiving and complete == self._complete:
            self._look_at_part(nbytes, grew=self._received > received)
        elif began and self._complete == complete + 1 and self._waiting:
            self._know(self._waiting[-1], nbytes)
        self._serve()

    def _came_again(self, nbytes: int) -> bool:
        """Whether it is a request with the head of the one before, which need not be read anew."""
        known = self._known
        if known is None or nbytes != known.whole or self._receiving or not self._hub.held.startswith(known.head):
            return False
        if self.door is not None and self.door(known.fields) is not None:
            return False
        request = known.request(bytes(self._hub.buffer[len(known.head) : nbytes]))
        self._waiting.append(_Asked(request, keep=True, chunked=True, bodiless=False))
        self._serve()
        return True

    def _know(self, asked: _Asked | _Refused, nbytes: int) -> None:
        self._known = None
        if isinstance(asked, _Asked) and asked.keep and not asked.bodiless and not self._receiving:
            self._known = Known.of(self._hub.held, nbytes, asked.request)

    def _look_at_part(self, nbytes: int, *, grew: bool) -> None:
        """What came ended nothing. Only a body that begins or grows gives the client more time, and room between."""
        if grew:
            self._head = 0
            if self._task is None and self._drained is None:
                self.deadline = self._loop.time() + SILENCE
            return
        self._head += nbytes  # of the head, or of chunks and trailers that hold nothing
        if self._head > HEAD:
            self._refuse(_head_too_large())

    def eof_received(self) -> bool:
        """The client sends no more: it has left."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Nobody waits for an answer any more."""
        self._hub.left(self)
        self._waiting.clear()
        self._deaf = True
        if self._task is not None:
            self._task.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.cancel()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        self._drained = self._loop.create_future()
        self.deadline = self._loop.time() + SILENCE

    def resume_writing(self) -> None:
        """It has caught up."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        self.deadline = math.inf if self._task is not None else self._loop.time() + IDLE
        self._serve()

    # --- what the parser says -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._fields, self._body = b"", {}, []
        self._in_head = self._receiving = True
        self._head = self._named = 0
        if self._task is None and self._drained is None:
            self.deadline = self._loop.time() + HEAD_WITHIN

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url
        self._named += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of it; those behind a body are dropped, for the door has looked already."""
        self._named += len(name) + len(value) + 4
        if self._named > HEAD:
            self._refuse(_head_too_large())
        if self._deaf or not self._in_head:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_headers_complete(self) -> None:
        """Whether the rest of it is wanted."""
        self._in_head, self._received = False, 0
        if self._named > HEAD:  # without a field it is the target alone
            self._refuse(_head_too_large())
        if self._deaf:
            return
        error = self.door(self._fields) if self.door is not None else None
        length = int(self._fields.get("content-length", 0))
        if error is not None:
            self._refuse(error)
        elif length > self._hub.body:
            self._refuse(self._too_large())
        elif self._fields.get("expect", "").lower() == "100-continue" and self._task is None and not self._waiting:
            self._transport.write(CONTINUE)

    def on_body(self, data: bytes) -> None:
        """A part of its body."""
        if self._deaf:
            return
        self._received += len(data)
        if self._received > self._hub.body:
            self._refuse(self._too_large())
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """It is whole."""
        if self._deaf:
            return
        self._complete += 1
        self._receiving, self._received = False, -1
        version, method = self._parser.get_http_version(), self._parser.get_method().decode("latin-1")
        keep = self._parser.should_keep_alive() and version == "1.1" and not self._parser.should_upgrade()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request("GET" if method == "HEAD" else method, path_of(self._url), self._fields, body)
        self._waiting.append(_Asked(request, keep, version == "1.1", method == "HEAD"))
        self._body, self._last = [], not keep

    # --- answering ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Begin on the next request, unless one is under way or the client does not read."""
        if not self._waiting:
            return
        if self._task is not None or self._drained is not None:
            self._read_on()
            return
        asked = self._waiting.popleft()
        self._read_on()
        if isinstance(asked, _Refused):
            self._send_last(self._hub.routes.refuse(asked.path, asked.error))
            return
        try:
            coming = self._hub.routes.handle(asked.request)
        except Exception as e:  # noqa: BLE001  a bug in one route must not end the connection without a word
            coming = self._broken(asked.request, e)
        if isinstance(coming, Reply) and isinstance(coming.body, bytes):
            self._send(coming, coming.body, asked)
            self._next(asked)
        else:
            self.deadline = math.inf  # from here the time limit of the request counts
            self._task = self._loop.create_task(self._later(coming, asked))
            if not isinstance(coming, Reply):  # left before its first step, it would never be waited for
                self._task.add_done_callback(lambda _task: coming.close())

    def _read_on(self) -> None:
        if len(self._waiting) > AHEAD:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def _later(self, coming: Reply | Coroutine[Any, Any, Reply], asked: _Asked) -> None:
        try:
            reply = coming if isinstance(coming, Reply) else await coming
        except Exception as e:  # noqa: BLE001  as above
            reply = self._broken(asked.request, e)
        try:
            whole = await self._deliver(reply, asked)
        except Exception as e:  # noqa: BLE001  a reply that cannot be written must not hold the connection for ever
            self._broken(asked.request, e)
            self._transport.abort()
            return
        self._task = None
        if whole:
            self._next(asked)
        else:
            self._end()

    async def _deliver(self, reply: Reply, asked: _Asked) -> bool:
        if isinstance(reply.body, bytes):
            self._send(reply, reply.body, asked)
            return True
        async with aclosing(reply.body):
            return await self._stream(reply, asked)

    async def _stream(self, reply: Reply, asked: _Asked) -> bool:
        """Send the parts as they come; whether all came. The client can tell when not: the body has no end."""
        assert not isinstance(reply.body, bytes)
        self._write_head(reply, "transfer-encoding: chunked\r\n" if asked.chunked else "", asked.keep)
        try:
            async with aclosing(reply.body) as parts:
                async for data in parts:
                    if asked.bodiless:
                        break
                    if data:
                        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if asked.chunked else data)
                    if self._drained is not None:
                        await self._drained
        except Unavailable as e:
            _log.warning("%s: the answer was cut off: %s", asked.request.path[:120], e)
            return False
        except Exception as e:  # noqa: BLE001  as above
            self._broken(asked.request, e)
            return False
        if asked.chunked and not asked.bodiless:
            self._transport.write(b"0\r\n\r\n")
        return True

    def _send(self, reply: Reply, body: bytes, asked: _Asked) -> None:
        self._write_head(reply, f"content-length: {len(body)}\r\n", asked.keep, b"" if asked.bodiless else body)

    def _write_head(self, reply: Reply, framing: str, keep: bool, body: bytes = b"") -> None:
        """The head, and the body if it is here, in one write."""
        self._hub.statuses[reply.status] += 1
        self._transport.write(head_of(reply, framing, keep=keep and not self._hub.closing) + body)

    def _next(self, asked: _Asked) -> None:
        """Wait for the next request, or end."""
        if not asked.keep or self._hub.closing:
            self._end()
        elif self._waiting:
            self._loop.call_soon(self._serve)  # not here: the others come first
        elif self._drained is None:
            self.deadline = self._loop.time() + (HEAD_WITHIN if self._receiving else IDLE)

    def _broken(self, request: Request, error: Exception) -> Reply:
        """Nothing of the input is logged, so neither is the message of an exception that may quote it."""
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.error("%s %s failed: %s\n%s", request.method, request.path[:120], type(error).__name__, where)
        return self._hub.routes.refuse(request.path, AgentError("the agent failed at this request: its log says where"))

    # --- refusing and ending --------------------------------------------------------------------------------------

    def _too_large(self) -> TooLarge:
        return TooLarge(f"request body: over the limit of {self._hub.body} bytes: send less at once")

    def _refuse(self, error: AgentError) -> None:
        """Answer with it after what is under way, and read nothing more."""
        if not self._deaf:
            self._deaf = True
            self._waiting.append(_Refused(path_of(self._url), error))

    def _end(self) -> None:
        """Close once the client has read what is written, if it does."""
        self._deaf = True
        self._transport.close()
        self.deadline = self._loop.time() + SILENCE

    def _send_last(self, reply: Reply) -> None:
        body = cast(bytes, reply.body)
        self._write_head(reply, f"content-length: {len(body)}\r\n", keep=False, body=body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline = self._loop.time() + LINGER

    def expire(self) -> None:
        """It was silent for too long."""
        if self._deaf or self._drained is not None or not self._receiving:
            self._transport.abort()
            return
        self._refuse(TooSlow(f"the request did not come within {HEAD_WITHIN:.0f} s, or paused for {SILENCE:.0f} s"))
        self._serve()

    def finish(self) -> None:
        """Answer what is under way and end; at once where there is nothing."""
        if self._task is None and not self._waiting and (self._deaf or not self._receiving):
            self._end()

    def abort(self) -> None:
        """End, whatever is under way."""
        self._transport.abort()


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"request line and header fields: over {HEAD} bytes")
