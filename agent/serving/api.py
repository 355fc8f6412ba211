"""The local API: what a product app on this machine may ask.

    GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/stats       POST /v2/repository/index
    GET  /v2/models/{name}[/versions/{digest}][/ready | /stats]
    POST /v2/models/{name}[/versions/{digest}]/infer      Open Inference Protocol v2 (`agent.serving.oip`)
    POST /shoal/feedback              {"request": id of an answer, "label": its true label, or "score": 0 to 1}
    GET  /shoal/status  /shoal/routing  /shoal/capture  /metrics
    /v1/...                           OpenAI's API (`agent.serving.openai`); the cloud's, as `agent.routing` decides

Texts are never logged.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from agent.errors import AgentError, Malformed, NotFound, Unavailable
from agent.life.telemetry import WindowMeter
from agent.serving import metrics, oip
from agent.serving.capture import Capture
from agent.serving.exchange import Reply, Request
from agent.serving.generating import QUEUE
from agent.serving.openai import OURS, OpenAi
from agent.serving.refusals import refusal
from agent.serving.routed import Admitted
from agent.serving.router import Router
from agent.serving.service import Answer, Begun, Served, Service

AGENT_NAME: Final = "shoal-agent"
Later = Coroutine[Any, Any, Reply]


class LocalApi:
    """The application. `status()` gives the device's status, `online()` whether the fleet can be reached."""

    def __init__(
        self,
        *,
        service: Service,
        meter: WindowMeter,
        router: Router,
        status: Callable[[], dict[str, Any]],
        online: Callable[[], bool],
        body_limit: int,
        version: str,
        capture: Capture | None = None,
        language_queue: int = QUEUE,
    ) -> None:
        self._service = service
        self._meter = meter
        self._openai = OpenAi(service, router, time.time, language_queue)
        self._router = router
        self._online = online
        self._version = version
        self._capture = capture
        self._since = time.monotonic()
        self._ids = _ids()
        self.body_limit = body_limit
        self.statuses: Mapping[int, int] = Counter()
        """Replies by status code, counted by the server."""
        self._get: dict[str, Callable[[], Any]] = {
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/health/live": lambda: {"live": True},
            "/v2/health/ready": self._ready,
            "/v2/models/stats": self._statistics,
            "/shoal/capture": self._captured,
            "/shoal/status": status,
            "/shoal/routing": router.view,
        }

    # --- the seam with the server ---------------------------------------------------------------------------------

    def handle(self, request: Request) -> Reply | Later:
        """The reply to a request, refusals too; at once where nothing has to be waited for."""
        try:
            coming = self._route(request)
        except AgentError as e:
            return refusal(request.path, e)
        return coming if isinstance(coming, Reply) else self._answered(request.path, coming)

    async def answer(self, request: Request) -> Reply:
        """The same, always waited for."""
        coming = self.handle(request)
        return coming if isinstance(coming, Reply) else await coming

    def refuse(self, path: str, error: AgentError) -> Reply:
        """The reply that says why not."""
        return refusal(path, error)

    async def _answered(self, path: str, coming: Later) -> Reply:
        try:
            return await coming
        except AgentError as e:
            return refusal(path, e)

    # --- routes ---------------------------------------------------------------------------------------------------

    def _route(self, request: Request) -> Reply | Later:
        method, path = request.method, request.path
        if path.startswith("/v2/models/") and path not in self._get:
            return self._model(request)
        if method == "GET" and path in self._get:
            return Reply.json(200, self._get[path]())
        if method == "GET" and path == "/metrics":
            return Reply(200, metrics.CONTENT_TYPE, self._metrics())
        if method == "POST" and path == "/shoal/feedback":
            return Reply.json(200, self._feedback(request.body))
        if method == "POST" and path == "/v2/repository/index":
            return Reply.json(200, self._index())
        if path.startswith(OURS):
            return self._openai.answer(request)
        raise _no_route(request)

    def _model(self, request: Request) -> Reply | Later:
        name, digest, what = _asked_for(request.path)
        if what not in ("", "ready", "stats", "infer") or request.method != ("POST" if what == "infer" else "GET"):
            raise _no_route(request)
        served = self._service.answering(name)
        if digest is not None and digest != served.digest:
            raise NotFound(f"model {name}: version {digest[:80]!r} does not answer here: {served.digest} does")
        match what:
            case "infer":
                return self._infer(name, served, request)
            case "ready":
                return Reply.json(200, {"name": name, "ready": True}, served.names)
            case "stats":
                return Reply.json(200, {"model_stats": [served.tally.statistics(name, served.digest)]}, served.names)
            case _:
                return Reply.json(200, oip.model_value(name, served), served.names)

    def _infer(self, name: str, served: Served, request: Request) -> Reply | Later:
        asked = oip.parse_request(request.body, served, request.headers.get(oip.JSON_LENGTH))
        if self._router.concerns(request.headers):
            return self._infer_routed(name, served, asked, request.headers)
        answer = self._service.at_once(name, served, asked.examples)
        if answer is not None:
            return self._reply(answer, asked)
        # Queued here, not later: another model may answer under this name by then.
        return self._infer_later(self._service.begin(name, served, asked.examples), asked)

    async def _infer_later(self, begun: Begun, asked: oip.Request) -> Reply:
        return self._reply(await self._service.finish(begun), asked)

    def _infer_routed(self, name: str, served: Served, asked: oip.Request, headers: Mapping[str, str]) -> Later:
        admitted = self._router.admit(headers, served, asked.examples)
        # As above: queued here. Where the request waits for the cloud, its model has answered by then.
        answer = self._service.at_once(name, served, asked.examples)
        begun = answer or self._service.begin(name, served, asked.examples)

        async def ask() -> Answer:
            return begun if isinstance(begun, Answer) else await self._service.finish(begun)

        return self._route_later(admitted, asked, ask)

    async def _route_later(self, admitted: Admitted, asked: oip.Request, ask: Callable[[], Awaitable[Answer]]) -> Reply:
        named = replace(asked, id=asked.id or next(self._ids))
        assert named.id is not None
        routed = await self._router.classification(admitted, named.id, ask)
        reply = self._reply(routed.local, named, given=routed.answer)
        return replace(reply, headers={**reply.headers, **routed.headers})

    def _reply(self, answer: Answer, asked: oip.Request, *, given: Answer | None = None) -> Reply:
        """The device's answer, or one `given` in its place: feedback is on what the device said."""
        request_id = asked.id or next(self._ids)
        if len(answer.results) == 1:  # feedback is on one example
            labels = answer.results[0].labels
            self._meter.remember(request_id, answer.model, answer.digest, labels[0] if len(labels) == 1 else None)
        if self._capture is not None:
            self._capture.take(answer.model, answer.digest, asked.examples, answer.results)
        return oip.answer_reply(given or answer, asked, request_id)

    def _feedback(self, body: bytes) -> Any:
        value = oip.parse_object(body)
        request, label, score = value.get("request"), value.get("label"), value.get("score")
        if not isinstance(request, str) or (label is None) == (score is None):
            raise Malformed(
                'feedback: expected {"request": the id of an answer, "label": the true label}, or "score": 0 to 1'
            )
        if label is not None and not isinstance(label, str):
            raise Malformed("feedback: label: expected a text")
        if score is not None and (type(score) not in (int, float) or not 0 <= score <= 1):
            raise Malformed("feedback: score: expected a number from 0, wrong, to 1, right")
        return {"request": request, "correct": self._meter.feedback(request, label, score)}

    # --- what the server is ---------------------------------------------------------------------------------------

    def _server(self) -> Any:
        return {"name": AGENT_NAME, "version": self._version, "extensions": list(oip.EXTENSIONS)}

    def _ready(self) -> Any:
        if not self._service.names():
            raise Unavailable("no model is installed yet: roll one out to this device")
        return {"ready": True}

    def _captured(self) -> Any:
        if self._capture is None:
            raise NotFound("data capture is off on this device: its owner may set 'capture'")
        return self._capture.shown()

    def _models(self) -> list[tuple[str, Served]]:
        return [(name, self._service.answering(name)) for name in self._service.names()]

    def _statistics(self) -> Any:
        return {"model_stats": [served.tally.statistics(name, served.digest) for name, served in self._models()]}

    def _index(self) -> Any:
        return [
            {"name": name, "version": served.digest, "state": "READY", "reason": ""} for name, served in self._models()
        ]

    def _metrics(self) -> bytes:
        return metrics.text(
            self._models(),
            shadows=sorted(self._service.beside.items(), key=lambda item: item[0]),
            statuses=self.statuses,
            online=self._online(),
            version=self._version,
            uptime=time.monotonic() - self._since,
        )


@lru_cache(256)
def _asked_for(path: str) -> tuple[str, str | None, str]:
    """Model, version if one is named, and what is asked, in the path of a model."""
    _, _, _, name, *rest = path.split("/")
    digest = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None
    return name, digest, "/".join(rest if digest is None else rest[2:])


def _ids() -> Iterator[str]:
    """Ids of answers, which nobody can guess: whoever knows one can give feedback on it."""
    while True:
        many = os.urandom(16 * 64).hex()
        yield from (many[i : i + 32] for i in range(0, len(many), 32))


def _no_route(request: Request) -> NotFound:
    return NotFound(f"{request.method} {request.path[:120]}: no such route: see /v2 and /shoal/status")
