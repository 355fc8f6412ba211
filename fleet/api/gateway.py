"""The cloud tier, first form: OpenAI-compatible requests of devices and operators go on to one configured endpoint.

What a request says is neither kept nor logged; only who asked, how long it took and what came of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import aiohttp
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from fleet.api.auth import caller_of
from fleet.errors import Malformed
from fleet.services import services_of

_log = logging.getLogger(__name__)
_KEPT = ("content-type", "cache-control", "retry-after")
_MOST_PARTS = 100_000
"""Values in a body: to read millions of them takes seconds, in which the fleet would answer nobody."""
T = TypeVar("T")


router = APIRouter(prefix="/v1")


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """A chat completion, streamed when the request asks for it."""
    body = await request.body()
    _check(body)
    return await _forward(request, "/chat/completions", body)


@router.get("/models")
async def models(request: Request) -> Response:
    """The models that the upstream offers."""
    return await _forward(request, "/models", None)


async def _forward(request: Request, path: str, body: bytes | None) -> Response:
    upstream, caller = services_of(request).upstream, caller_of(request).name
    started = time.monotonic()
    answer = await _while_connected(request, upstream.send(request.method, path, body))
    if answer is None:
        _log.info("%s %s: left before the upstream answered", caller, path)
        return Response(status_code=499)  # nginx's word for it; nobody reads it
    headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
    _log.info("%s %s: upstream status %d, %.0f ms", caller, path, answer.status, (time.monotonic() - started) * 1000)
    return _PassedOn(_pass_on(answer, caller), status_code=answer.status, headers=headers)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What comes of some work, or None when the client leaves first: the work is then cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _BrokeOff(Exception):
    """The upstream ended in the middle of its answer."""


class _PassedOn(StreamingResponse):
    """A stream that breaks off where the upstream did: without its last chunk the client cannot take it for whole."""

    async def stream_response(self, send: Send) -> None:
        """Send all there is."""
        with suppress(_BrokeOff):
            await super().stream_response(send)


async def _pass_on(answer: aiohttp.ClientResponse, caller: str) -> AsyncIterator[bytes]:
    """The body as it comes."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except (TimeoutError, aiohttp.ClientError) as e:
        _log.warning("%s: the upstream broke off: %s", caller, e)
        raise _BrokeOff from e
    finally:
        answer.close()


def _check(body: bytes) -> None:
    # Signs within texts count too: two million characters of prose have fewer.
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > _MOST_PARTS:
        raise Malformed(f"chat completion: over {_MOST_PARTS} commas and brackets: send less in one request")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"chat completion: the body is not JSON: {e}") from e
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise Malformed("chat completion: expected an object with a list of messages")
