"""The cloud tier, first form: OpenAI-compatible requests of devices and operators go on to one configured endpoint.

What a request says is neither kept nor logged; only who asked, how long it took and what came of it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Annotated

import aiohttp
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from fleet.auth import device_or_operator
from fleet.errors import Malformed
from fleet.services import services_of

_log = logging.getLogger(__name__)
_KEPT = ("content-type", "cache-control")


router = APIRouter(prefix="/v1")


@router.post("/chat/completions")
async def chat_completions(request: Request, caller: Annotated[str, Depends(device_or_operator)]) -> Response:
    """A chat completion, streamed when the request asks for it."""
    body = await request.body()
    _check(body)
    return await _forward(request, caller, "/chat/completions", body)


@router.get("/models")
async def models(request: Request, caller: Annotated[str, Depends(device_or_operator)]) -> Response:
    """The models that the upstream offers."""
    return await _forward(request, caller, "/models", None)


async def _forward(request: Request, caller: str, path: str, body: bytes | None) -> Response:
    upstream = services_of(request).upstream
    started = time.monotonic()
    answer = await upstream.send(request.method, path, body)
    headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
    _log.info("%s %s: upstream status %d, %.0f ms", caller, path, answer.status, (time.monotonic() - started) * 1000)
    return StreamingResponse(_pass_on(answer, caller), status_code=answer.status, headers=headers)


async def _pass_on(answer: aiohttp.ClientResponse, caller: str) -> AsyncIterator[bytes]:
    """The body as it comes. One that breaks off breaks off here too: the client must not take it for whole."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except (TimeoutError, aiohttp.ClientError) as e:
        _log.warning("%s: the upstream broke off: %s", caller, e)
        raise
    finally:
        answer.close()


def _check(body: bytes) -> None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Malformed(f"chat completion: the body is not JSON: {e}") from e
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise Malformed("chat completion: expected an object with a list of messages")
