"""The cloud tier's routes: OpenAI-compatible, for devices by their certificate and for keys.

They are plain ASGI behind the same gate and the same table of rights as every other route: what a framework makes of a
request would cost more than all that the gateway itself does. What a request says is neither logged nor kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from fleet.api.auth import caller_of
from fleet.api.limits import CONNECTION
from fleet.api.statuses import status_of
from fleet.errors import FleetError
from fleet.gateway.asked import CHAT, COMPLETIONS, EMBEDDINGS
from fleet.gateway.calls import Answer, Call
from fleet.gateway.gateway import Gateway, outcome_of
from fleet.gateway.records import ANSWERED, BROKE_OFF, CUT, FAILED, LEFT
from fleet.gateway.streams import BrokeOff
from fleet.services import services_of

_PREFIX: Final = "/v1"
_READER: Final = 60.0
"""Seconds that a client may take no piece, beyond the longest silence of its upstream: it holds a place there."""
_LOOK: Final = 5.0


class _Left(Exception):
    """The client is gone."""


class _Answering(Response):
    """A response that is the whole work: the same whether the framework calls it or the gate does."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await serve(scope, receive, send)


router = APIRouter(prefix=_PREFIX)


@router.post(CHAT)
async def chat_completions() -> Response:
    """A chat completion, streamed when the request asks for it."""
    return _Answering()


@router.post(COMPLETIONS)
async def completions() -> Response:
    """A completion of a text, streamed when the request asks for it."""
    return _Answering()


@router.post(EMBEDDINGS)
async def embeddings() -> Response:
    """Embeddings of texts."""
    return _Answering()


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that whoever asks may ask for."""
    return {"object": "list", "data": await services_of(request).gateway.models(caller_of(request))}


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """A POST to one of the routes above, of somebody whom the gate let in."""
    request = HTTPConnection(scope)
    gateway = services_of(request).gateway
    call = gateway.begin(caller_of(request), scope["path"].removeprefix(_PREFIX))
    await _serve(gateway, call, scope, receive, send)


DIRECT: Final[Mapping[tuple[str, str], ASGIApp]] = {
    ("POST", _PREFIX + path): serve for path in (CHAT, COMPLETIONS, EMBEDDINGS)
}
"""Rows of the policy that the gate serves without the framework."""


async def _serve(gateway: Gateway, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
    """One request: it ends in the audit whatever happens, and its work ends when its client leaves."""
    status, outcome, detail = 499, LEFT, ""
    try:
        body = await _body(receive)
        with_client = _Client(call, scope)
        try:
            answer = await gateway.ask(call, body)
            status = answer.status
            outcome = await _send(gateway, call, answer, send)
        except asyncio.CancelledError:
            # Cancelled by us, because the client is gone; or by the server that stops, which has to hear of it.
            if not with_client.left():
                outcome = FAILED
                raise
        finally:
            with_client.close()
    except _Left:
        pass
    except BrokeOff:
        outcome = BROKE_OFF  # without the last chunk the client cannot take it for whole
    except FleetError as e:
        status, outcome, detail = status_of(e)[0], outcome_of(e), str(e)
        raise
    except BaseException:
        status, outcome = 500, FAILED
        raise
    finally:
        gateway.end(call, outcome, status, detail)


class _Client:
    """Cancels the work for a client once it is gone."""

    def __init__(self, call: Call, scope: Scope) -> None:
        self._call = call
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        connection = scope.get("extensions", {}).get(CONNECTION)
        self.close: Callable[[], None] = connection.when_lost(self._gone) if connection is not None else _nothing

    def left(self) -> bool:
        """Whether it was this that cancelled the work; it is then no cancellation any more."""
        if self._call.left:
            self._task.uncancel()
        return self._call.left

    def _gone(self) -> None:
        if not self._call.ended:
            self._call.left = True
            self._task.cancel()


def _nothing() -> None:
    """A server without our connections, as in a test: it cannot tell that a client left."""


async def _body(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _send(gateway: Gateway, call: Call, answer: Answer, send: Send) -> str:
    """Send an answer; the outcome that the audit tells."""
    if answer.events is None:
        length = {"Content-Length": str(len(answer.body))}
        gateway.first_byte(call)
        await send(_start(answer, length))
        await send({"type": "http.response.body", "body": answer.body})
        return answer.outcome
    events = aiter(answer.events)
    loop = asyncio.get_running_loop()
    try:
        await _events(gateway, call, answer, events, send, loop)
    except TimeoutError:
        return LEFT  # it is there and does not read
    finally:
        await events.aclose()  # type: ignore[attr-defined]
    return CUT if call.verdicts.blocked else ANSWERED


async def _events(
    gateway: Gateway, call: Call, answer: Answer, events: Any, send: Send, loop: asyncio.AbstractEventLoop
) -> None:
    begun = False
    async with asyncio.timeout(None) as patience:
        looked = 0.0
        async for event in events:
            now = loop.time()
            if now >= looked:  # to set a timer at each event would cost more than to send it
                looked = now + _LOOK
                patience.reschedule(looked + _READER + answer.silence)
            if not begun:
                begun = True
                gateway.first_byte(call)
                await send(_start(answer, {}))
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if not begun:
            await send(_start(answer, {}))
        await send({"type": "http.response.body", "body": b""})


def _start(answer: Answer, more: Mapping[str, str]) -> dict[str, Any]:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**answer.headers, **more}.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
