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
from agent.serving.exchange import Reply, Request
from agent.serving.service import Service

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

AGENT_NAME: Final = "shoal-agent"
_log = logging.getLogger(__name__)


class TooLarge(AgentError):
    """A request body over the limit."""


class Offline(Unavailable):
    """Only the cloud could answer, and it cannot be reached."""


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
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            return
        try:
            body = await self._body(receive)
        except AgentError as e:
            await _send(_refusal(scope["path"], e), receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        await _send(await self.answer(Request(scope["method"], scope["path"], headers, body)), receive, send)

    async def answer(self, request: Request) -> Reply:
        """The reply to a request, refusals too."""
        try:
            return await self._route(request)
        except AgentError as e:
            return _refusal(request.path, e)

    async def _route(self, request: Request) -> Reply:
        method, path = request.method, request.path
        if method == "GET" and path in self._get:
            return Reply.json(200, self._get[path]())
        if method == "POST" and path == "/shoal/feedback":
            return Reply.json(200, self._feedback(request.body))
        if method == "POST" and path == "/v1/chat/completions":
            return await self._chat(request)
        match = re.fullmatch(r"/v2/models/([^/]+)(/ready|/infer)?", path)
        if match and method == ("POST" if match[2] == "/infer" else "GET"):
            return Reply.json(200, await self._model(match[1], match[2], request.body))
        raise NotFound(f"{method} {path[:120]}: no such route: see /v2 and /shoal/status")

    async def _model(self, name: str, what: str | None, body: bytes) -> Any:
        if what == "/infer":
            return await self._infer(name, body)
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

    async def _chat(self, request: Request) -> Reply:
        oip.parse_object(request.body)
        if not self._online():
            raise Offline("this device is offline and the model runs in the cloud: try again when it is back")
        reply = await self._cloud.forward(request.path, request.body)
        return Reply(reply.status, reply.content_type, reply.body)

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


async def _send(reply: Reply, receive: Receive, send: Send) -> None:
    fields = {"content-type": reply.content_type, **reply.headers}
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    if isinstance(reply.body, bytes):
        await send({"type": "http.response.body", "body": reply.body})
        return
    try:
        await _pass_on(reply.body, receive, send)
    except Unavailable as e:
        # The status is out: returning without an end lets the server break the connection, as the cloud did.
        _log.warning("an answer was cut off: %s", e)


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


def _refusal(path: str, error: AgentError) -> Reply:
    """Under /v1 in OpenAI's form, so that its clients understand it."""
    if not path.startswith("/v1/"):
        return Reply.json(_status_of(error), {"error": str(error)})
    kind = type(error).__name__.lower()
    return Reply.json(_status_of(error), {"error": {"message": str(error), "type": kind, "code": kind, "param": None}})


def _status_of(error: AgentError) -> int:
    by_kind: tuple[tuple[type[AgentError], int], ...] = (
        (TooLarge, 413),
        (NotFound, 404),
        (Malformed, 400),
        (Unavailable, 503),
        (Untrusted, 502),
    )
    return next((status for kind, status in by_kind if isinstance(error, kind)), 500)
