"""The cloud tier's routes: OpenAI-compatible, for devices by their certificate and for keys.

They are plain ASGI behind the same gate and the same table of rights as every other route: what a framework makes of a
request would cost more than all that the gateway itself does. What a request says is neither logged nor kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from fleet.api.auth import authorize, caller_of
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
"""Seconds that a client may take for the next piece of its answer: it holds a place at an upstream meanwhile."""


class _Left(Exception):
    """The client is gone."""


class _Plain(APIRoute):
    """A route whose requests go past FastAPI's own handling; the second lock is asked here."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of a POST."""
        if "POST" not in (self.methods or ()) or scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        request = Request(scope)
        await authorize(request)
        gateway: Gateway = services_of(request).gateway
        call = gateway.begin(caller_of(request), self.path.removeprefix(_PREFIX))
        await _serve(gateway, call, receive, send)


router = APIRouter(prefix=_PREFIX, route_class=_Plain)


@router.post(CHAT)
async def chat_completions(request: Request) -> dict[str, Any]:
    """A chat completion, streamed when the request asks for it."""
    raise AssertionError(request.url.path)


@router.post(COMPLETIONS)
async def completions(request: Request) -> dict[str, Any]:
    """A completion of a text, streamed when the request asks for it."""
    raise AssertionError(request.url.path)


@router.post(EMBEDDINGS)
async def embeddings(request: Request) -> dict[str, Any]:
    """Embeddings of texts."""
    raise AssertionError(request.url.path)


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that whoever asks may ask for."""
    return {"object": "list", "data": await services_of(request).gateway.models(caller_of(request))}


async def _serve(gateway: Gateway, call: Call, receive: Receive, send: Send) -> None:
    """One request: it ends in the audit whatever happens, and its work ends when its client leaves."""
    status, outcome, detail = 499, LEFT, ""
    try:
        body = await _body(receive)
        with_client = _Client(call, receive)
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
    """Looks whether the client is still there, and cancels the work for it when it is not."""

    def __init__(self, call: Call, receive: Receive) -> None:
        self._call, self._receive = call, receive
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.ensure_future(self._until_left())
        self._watch.add_done_callback(self._gone)

    def close(self) -> None:
        """Look no more."""
        self._watch.remove_done_callback(self._gone)
        self._watch.cancel()

    def left(self) -> bool:
        """Whether it was this that cancelled the work; it is then no cancellation any more."""
        if self._call.left:
            self._task.uncancel()
        return self._call.left

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _gone(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled() and not self._call.ended:
            self._call.left = True
            self._task.cancel()


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
        async for event in events:
            if not begun:
                begun = True
                gateway.first_byte(call)
                await send(_start(answer, {}))
            patience.reschedule(loop.time() + _READER)
            await send({"type": "http.response.body", "body": event, "more_body": True})
            patience.reschedule(None)
        if not begun:
            await send(_start(answer, {}))
        await send({"type": "http.response.body", "body": b""})


def _start(answer: Answer, more: Mapping[str, str]) -> dict[str, Any]:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in {**answer.headers, **more}.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}
