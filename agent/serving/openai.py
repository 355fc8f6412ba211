"""OpenAI's API for what runs on this device; a model of another name is asked of the cloud tier.

    GET  /v1/models  /v1/models/{name}
    POST /v1/chat/completions  /v1/completions      language models; `stream` as server-sent events
    POST /v1/embeddings                             sentence embeddings, as numbers or base64

What a request asks for and this device cannot do is refused, never passed over. `system_fingerprint` is the digest of
the model that answered. Requests and answers: the OpenAI API reference of 2026.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final

from agent.errors import Malformed, NotFound, Unsupported
from agent.serving import oip
from agent.serving.bundles import Loaded, Model
from agent.serving.exchange import Reply, Request
from agent.serving.generating import QUEUE, Generating
from agent.serving.generation import End, Part
from agent.serving.openai_requests import Embeddings, Generation, parse_embeddings, parse_generation
from agent.serving.routed import LocalChat, Said
from agent.serving.router import Router
from agent.serving.service import Served, Service
from wire.document import dump_json
from wire.pipeline import EMBEDDING

OURS: Final = "/v1/"
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SSE: Final = "text/event-stream"
TASKS: Final = ("text-generation", "sentence-embedding")
"""Of models that this API can ask."""
HELD: Final = 16
"""Tokens of a stream that are held back where an unsure answer would go up: what was sent cannot be taken back."""


class OpenAi:
    """The routes under /v1. `now()`: the time in seconds since 1970."""

    def __init__(
        self,
        service: Service,
        router: Router,
        now: Callable[[], float],
        queue: int = QUEUE,
    ) -> None:
        self._service = service
        self._generating = Generating(service, queue)
        self._router = router
        self._now = now

    async def answer(self, request: Request) -> Reply:
        """The reply to a request under /v1. Raises an `AgentError` for a refusal."""
        method, path = request.method, request.path
        if method == "GET" and path == "/v1/models":
            return Reply.json(200, {"object": "list", "data": [self._model(name) for name in self._names()]})
        match = re.fullmatch(r"/v1/models/([^/]+)", path)
        if method == "GET" and match:
            if match[1] not in self._names():
                raise NotFound(
                    f"model {match[1][:80]!r}: this API has none of this name on this device: see /v1/models"
                )
            return Reply.json(200, self._model(match[1]))
        if method == "POST" and path in (CHAT, COMPLETIONS, EMBEDDINGS):
            return await self._ask(request)
        raise NotFound(
            f"{method} {path[:120]}: no such route: there are /v1/models, {CHAT}, {COMPLETIONS}, {EMBEDDINGS}"
        )

    async def _ask(self, request: Request) -> Reply:
        value = oip.parse_object(request.body)
        name = value.get("model")
        if name not in self._service.names():
            return await self._router.chat(request)
        assert isinstance(name, str)
        if request.path == EMBEDDINGS:
            return await self._embed(name, parse_embeddings(value))
        served = self._service.answering(name)
        if self._router.concerns(request.headers):
            return await self._router.chat(request, self._local(name, served, value, chat=request.path == CHAT))
        return (await self._said(name, served, parse_generation(value, chat=request.path == CHAT), judged=False)).reply

    # --- models -----------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return [n for n in self._service.names() if self._service.answering(n).pipeline.task in TASKS]

    def _model(self, name: str) -> dict[str, Any]:
        served = self._service.answering(name)
        told: dict[str, Any] = {"task": served.pipeline.task, "digest": served.digest, "target": served.target}
        language = served.pipeline.language
        if language is not None:
            told |= {"context_length": language.context, "chat": language.chat_template is not None}
        # A bundle holds no time, and the same model is not made again when it is installed.
        return {"id": name, "object": "model", "created": 0, "owned_by": "shoal", "shoal": told}

    # --- embeddings -------------------------------------------------------------------------------------------

    async def _embed(self, name: str, asked: Embeddings) -> Reply:
        if self._service.answering(name).pipeline.task != "sentence-embedding":
            raise Malformed(f"model {name}: it gives no embeddings")
        answer = await self._service.infer(name, asked.texts)
        data = [
            {"object": "embedding", "index": i, "embedding": asked.shown(result.outputs[EMBEDDING])}
            for i, result in enumerate(answer.results)
        ]
        tokens = await asyncio.wrap_future(answer.served.submit(lambda model: _count(model, asked.texts)))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Reply.json(
            200, {"object": "list", "data": data, "model": name, "usage": usage, "system_fingerprint": answer.digest}
        )

    # --- text -------------------------------------------------------------------------------------------------

    def _local(self, name: str, served: Served, value: dict[str, Any], *, chat: bool) -> LocalChat:
        """The model here as the routing asks it. Raises `Malformed` for what no model takes."""
        language = served.pipeline.language
        try:
            asked = parse_generation(value, chat=chat)
        except Unsupported as e:
            return LocalChat(name, served.digest, None, e)
        if chat and language is not None and language.chat_template is None:
            lacks = Unsupported(f"model {name}: it has no chat template, it only goes on with a text")
            return LocalChat(name, served.digest, None, lacks)

        def answer(judged: bool) -> Coroutine[Any, Any, Said]:
            return self._said(name, served, asked, judged=judged)

        return LocalChat(name, served.digest, answer)

    async def _said(self, name: str, served: Served, asked: Generation, *, judged: bool) -> Said:
        """An answer, or the beginning of one that is streamed: as much as it is judged by, at least its first part.

        So a refusal is still one: the status is not out yet.
        """
        head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if asked.chat else "text_completion",
            "created": int(self._now()),
            "model": name,
            "system_fingerprint": served.digest,
        }
        parts = self._generating.run(name, served, asked.asked)
        first = await _first(parts, math.inf if not asked.stream else HELD if judged else 0)
        if asked.stream:
            head |= {"object": "chat.completion.chunk"} if asked.chat else {}
            reply = Reply(200, SSE, _events(_with(first, parts), head, asked), {"Cache-Control": "no-cache"})
        else:
            reply = Reply.json(200, _whole(first, head, asked))
        sure = [math.exp(logprob) for part in first for logprob in part.logprobs] if judged or not asked.stream else []
        return Said(reply, sure, parts.aclose)


def _count(model: Loaded, texts: tuple[str, ...]) -> int:
    assert isinstance(model, Model)  # a model with a tokenizer of its own is no language model
    return sum(map(model.count_tokens, texts))


async def _first(parts: AsyncGenerator[Part, None], tokens: float) -> list[Part]:
    """The first parts of an answer, until they have so many tokens."""
    found, came = [], 0
    try:
        async for part in parts:
            found.append(part)
            came += len(part.tokens)
            if came >= tokens:
                break
    except BaseException:
        await parts.aclose()
        raise
    return found


async def _with(first: Sequence[Part], rest: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    async with aclosing(rest):
        for part in first:
            yield part
        async for part in rest:
            yield part


def _whole(parts: Sequence[Part], head: dict[str, Any], asked: Generation) -> dict[str, Any]:
    text, told, end = "".join(part.text for part in parts), [], parts[-1].end
    for part in parts if asked.logprobs else ():
        told += _logprobs(part)
    assert end is not None
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if asked.chat else {"text": text}
    logprobs = _listed(told, asked) if asked.logprobs else None
    choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": end.finish}
    return {**head, "choices": [choice], "usage": _usage(end)}


async def _events(
    parts: AsyncGenerator[Part, None], head: dict[str, Any], asked: Generation
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, as OpenAI sends them; closed early, the model stops."""
    usage = {"usage": None} if asked.include_usage else {}
    if asked.chat:
        yield _event({**head, "choices": [_delta({"role": "assistant", "content": ""})], **usage})
    async with aclosing(parts):
        async for part in parts:
            if part.text or (asked.logprobs and part.tokens):
                said = _delta({"content": part.text}) if asked.chat else {**_CHOICE, "text": part.text}
                if asked.logprobs:
                    said["logprobs"] = _listed(_logprobs(part), asked)
                yield _event({**head, "choices": [said], **usage})
            if part.end is not None:
                last = _delta({}) if asked.chat else {**_CHOICE, "text": ""}
                yield _event({**head, "choices": [{**last, "finish_reason": part.end.finish}], **usage})
                if asked.include_usage:
                    yield _event({**head, "choices": [], "usage": _usage(part.end)})
                yield b"data: [DONE]\n\n"


_CHOICE: Final[dict[str, Any]] = {"index": 0, "logprobs": None, "finish_reason": None}


def _delta(said: dict[str, Any]) -> dict[str, Any]:
    return {**_CHOICE, "delta": said}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + dump_json(value) + b"\n\n"


def _usage(end: End) -> dict[str, int]:
    return {"prompt_tokens": end.prompt, "completion_tokens": end.answer, "total_tokens": end.prompt + end.answer}


def _logprobs(part: Part) -> list[tuple[str, float]]:
    """Text and log probability of each token; text that came with several stands at the last."""
    count = len(part.tokens)
    return [(part.text if i == count - 1 else "", logprob) for i, logprob in enumerate(part.logprobs)]


def _listed(told: list[tuple[str, float]], asked: Generation) -> dict[str, Any]:
    if asked.chat:
        content = [{"token": t, "logprob": p, "bytes": list(t.encode()), "top_logprobs": []} for t, p in told]
        return {"content": content, "refusal": None}
    return {
        "tokens": [t for t, _ in told],
        "token_logprobs": [p for _, p in told],
        "top_logprobs": None,
        "text_offset": None,
    }
