"""The local API: what a product app on this machine may ask. A plain ASGI application.

    GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/{name}  /v2/models/{name}/ready
    POST /v2/models/{name}/infer      Open Inference Protocol v2 (`agent.serving.oip`)
    POST /shoal/feedback              {"request": id of an answer, "label": the true label of its first text}
    GET  /shoal/status
    POST /v1/chat/completions         forwarded to the cloud tier; offline: 503 at once

Only this module knows status codes. Texts are never logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from agent.errors import AgentError, Malformed, NotFound, Unavailable, Untrusted
from agent.life.telemetry import WindowMeter
from agent.serving import oip
from agent.serving.cloud import Cloud
from agent.serving.service import Service
from wire.document import dump_json

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

AGENT_NAME: Final = "shoal-agent"
_log = logging.getLogger(__name__)


class TooLarge(AgentError):
    """A request body over the limit."""


class LocalApi:
    """The application. `status()` gives the device's status, `online()` whether the fleet can be reached."""

    def __init__(
        self,
        *,
        service: Service,
        meter: WindowMeter,
        cloud: Cloud,
        status: Callable[[], dict[str, Any]],
        online: Callable[[], bool],
        body_limit: int,
        version: str,
    ) -> None:
        self._service = service
        self._meter = meter
        self._cloud = cloud
        self._status = status
        self._online = online
        self._body_limit = body_limit
        self._version = version
        self._get: dict[str, Callable[[], Any]] = {
            "/v2": lambda: {"name": AGENT_NAME, "version": self._version, "extensions": []},
            "/v2/health/live": lambda: {"live": True},
            "/v2/health/ready": self._ready,
            "/shoal/status": status,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/chat/completions" and scope["method"] == "POST":
            await self._chat(receive, send)
            return
        try:
            value = await self._answer(scope["method"], scope["path"], receive)
        except AgentError as e:
            await _send(send, _status_of(e), {"error": str(e)})
        else:
            await _send(send, 200, value)

    async def _answer(self, method: str, path: str, receive: Receive) -> Any:
        if method == "GET" and path in self._get:
            return self._get[path]()
        if method == "POST" and path == "/shoal/feedback":
            return self._feedback(await self._body(receive))
        match = re.fullmatch(r"/v2/models/([^/]+)(/ready|/infer)?", path)
        if match and method == ("POST" if match[2] == "/infer" else "GET"):
            return await self._model(match[1], match[2], receive)
        raise NotFound(f"{method} {path[:120]}: no such route: see /v2 and /shoal/status")

    async def _model(self, name: str, what: str | None, receive: Receive) -> Any:
        if what == "/infer":
            return await self._infer(name, await self._body(receive))
        served = self._service.answering(name)
        return {"name": name, "ready": True} if what else oip.model_value(name, served)

    async def _infer(self, name: str, body: bytes) -> Any:
        request = oip.parse_request(body, self._service.answering(name))
        answer = await self._service.infer(name, request.examples)
        request_id = request.id or uuid.uuid4().hex
        labels = answer.results[0].labels
        if len(labels) == 1:  # feedback names one label
            self._meter.remember(request_id, name, answer.digest, labels[0])
        return oip.answer_value(answer, request, request_id)

    def _feedback(self, body: bytes) -> Any:
        value = oip.parse_object(body)
        request, label = value.get("request"), value.get("label")
        if not isinstance(request, str) or not isinstance(label, str):
            raise Malformed('feedback: expected {"request": the id of an answer, "label": the true label}')
        return {"request": request, "correct": self._meter.feedback(request, label)}

    def _ready(self) -> Any:
        if not self._service.names():
            raise Unavailable("no model is installed yet: roll one out to this device")
        return {"ready": True}

    # --- cloud tier -------------------------------------------------------------------------------------------

    async def _chat(self, receive: Receive, send: Send) -> None:
        """OpenAI's form, errors too, so that its clients understand them."""
        try:
            body = await self._body(receive)
            oip.parse_object(body)
            if not self._online():
                raise Unavailable("this device is offline and the model runs in the cloud: try again when it is back")
            reply = await self._cloud.forward("/v1/chat/completions", body)
        except AgentError as e:
            kind = "offline" if not self._online() else type(e).__name__.lower()
            await _send(send, _status_of(e), {"error": {"message": str(e), "type": kind, "code": kind, "param": None}})
            return
        await _start(send, reply.status, reply.content_type)
        try:
            await _pass_on(reply.body, receive, send)
        except Unavailable as e:
            # The status is out: returning without an end lets the server break the connection, as the cloud did.
            _log.warning("a cloud answer was cut off: %s", e)

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Malformed("the client left before its request was whole")
            body += message.get("body", b"")
            if len(body) > self._body_limit:
                raise TooLarge(f"request body: over the limit of {self._body_limit} bytes: send fewer texts at once")
            if not message.get("more_body", False):
                return bytes(body)


async def _pass_on(body: AsyncGenerator[bytes, None], receive: Receive, send: Send) -> None:
    """Parts of an answer as they come; none are read any more once the client has left."""
    gone = asyncio.ensure_future(receive())
    try:
        async with aclosing(body) as parts:
            async for data in parts:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


def _status_of(error: AgentError) -> int:
    by_kind: tuple[tuple[type[AgentError], int], ...] = (
        (TooLarge, 413),
        (NotFound, 404),
        (Malformed, 400),
        (Unavailable, 503),
        (Untrusted, 502),
    )
    return next((status for kind, status in by_kind if isinstance(error, kind)), 500)


async def _send(send: Send, status: int, value: Any) -> None:
    await _start(send, status, "application/json")
    await send({"type": "http.response.body", "body": dump_json(value)})


async def _start(send: Send, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode("latin-1"))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
