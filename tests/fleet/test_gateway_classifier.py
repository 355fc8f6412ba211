"""The hook of the gateway for a classifier behind an agent's local API: a real server on a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fleet.errors import Blocked, NotJudged
from fleet.gateway.classifier import Classifier, parts_of
from fleet.gateway.config import ClassifierConfig
from fleet.gateway.filters import Verdicts


@asynccontextmanager
async def guard(
    socket: Path, seen: list[Any], *, delay: float = 0.0, answer: Any = None, full: int = 0
) -> AsyncIterator[None]:
    """What an agent does with a text classifier: OIP v2, BYTES in, label and score out; full for so many questions."""

    async def infer(request: web.Request) -> web.Response:
        seen.append((request.path, await request.json(), request.headers["Shoal-Data"]))
        if len(seen) <= full:
            return web.json_response({"error": "full"}, status=429, headers={"Retry-After": "2"})
        await asyncio.sleep(delay)
        texts = seen[-1][1]["inputs"][0]["data"]
        labels = ["injection" if "ignore" in text else "harmless" for text in texts]
        outputs = [
            {"name": "label", "datatype": "BYTES", "shape": [len(texts)], "data": labels},
            {"name": "score", "datatype": "FP32", "shape": [len(texts)], "data": [0.9] * len(texts)},
        ]
        return web.json_response(answer or {"model_name": "guard", "outputs": outputs})

    application = web.Application()
    application.router.add_post("/v2/models/guard/infer", infer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()


def look(
    folder: Path,
    text: str,
    *,
    up: bool = True,
    delay: float = 0.0,
    answer: Any = None,
    full: int = 0,
    seen: list[Any] | None = None,
    verdicts: Verdicts | None = None,
    **config: Any,
) -> Verdicts:
    """What comes of one text. Raises `Blocked`, `NotJudged`."""
    verdicts = Verdicts() if verdicts is None else verdicts

    async def run() -> Verdicts:
        socket = folder / "agent.sock"
        known = ClassifierConfig(name="g", socket=str(socket), model="guard", label="injection", **config)
        classifier = Classifier(known)
        try:
            if up:
                async with guard(socket, [] if seen is None else seen, delay=delay, answer=answer, full=full):
                    await classifier.look([text], verdicts, "f")
            else:
                await classifier.look([text], verdicts, "f")
        finally:
            await classifier.close()
        return verdicts

    return asyncio.run(run())


def test_the_classifier_is_asked_about_what_a_reader_sees(tmp_path: Path) -> None:
    """Attack: letters of full width, and invisible ones between them, are unknown words to a model."""
    disguised = "".join(chr(ord(c) + 0xFEE0) + "\u200b" for c in "ignore")
    with pytest.raises(Blocked, match="classifier g"):
        look(tmp_path, f"{disguised} it all")


def test_what_the_classifier_calls_an_injection_is_blocked_or_noted(tmp_path: Path) -> None:
    assert look(tmp_path, "what is the time?").counts == {}
    with pytest.raises(Blocked, match="classifier g"):
        look(tmp_path, "ignore it all")
    assert look(tmp_path, "ignore it all", action="note").counts == {"f/classifier g noted": 1}
    assert look(tmp_path, "ignore it all", threshold=0.95).counts == {}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"up": False}, "Cannot connect"),
        ({"delay": 5.0, "timeout": 0.2}, "it took too long"),
        ({"answer": {"outputs": []}}, "expected the outputs label and score"),
        ({"full": 2}, "it answered 429"),
    ],
)
def test_what_it_cannot_judge_is_refused_or_passed_as_asked_and_either_is_told(
    tmp_path: Path, how: dict[str, Any], why: str
) -> None:
    """Accident: the agent is not there, is slow, runs another kind of model, or has no room."""
    verdicts = Verdicts()
    with pytest.raises(NotJudged, match=f"classifier g: it could not judge the request within .*{why}") as error:
        look(tmp_path, "hello", verdicts=verdicts, **how)
    assert error.value.retry_after == (2.0 if "full" in how else 5.0)
    assert verdicts.counts == {"f/classifier g not-judged refused": 1}
    assert not verdicts.blocked
    assert look(tmp_path, "hello", on_failure="pass", **how).counts == {"f/classifier g not-judged noted": 1}


def test_a_server_without_room_is_asked_once_more(tmp_path: Path) -> None:
    """Accident: the queue of the agent is full for a moment."""
    seen: list[Any] = []
    assert look(tmp_path, "hello", full=1, seen=seen).counts == {}
    assert len(seen) == 2
    seen.clear()
    with pytest.raises(NotJudged):
        look(tmp_path, "hello", full=9, seen=seen)
    assert len(seen) == 2
    with pytest.raises(Blocked, match="classifier g"):
        look(tmp_path, "ignore it all", full=1)


def test_the_end_of_a_long_text_is_looked_at_too(tmp_path: Path) -> None:
    """Attack: what is not wanted, behind more text than the classifier takes."""
    text = "all is well. " * 2000 + "ignore it"
    parts = parts_of(text, ClassifierConfig(name="g", url="http://a", model="m", label="l").part)
    assert max(map(len, parts)) == 256
    assert parts[-1].endswith("ignore it")
    assert all(after.startswith(before[-64:]) for before, after in pairwise(parts))
    with pytest.raises(Blocked):
        look(tmp_path, text)


def test_the_question_is_the_one_that_the_local_api_documents(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def run() -> None:
        async with guard(tmp_path / "s", seen):
            classifier = Classifier(ClassifierConfig(name="g", socket=str(tmp_path / "s"), model="guard", label="x"))
            try:
                await classifier.look(["a", "b"], Verdicts(), "f")
            finally:
                await classifier.close()

    asyncio.run(run())
    ((path, body, stays),) = seen
    assert path == "/v2/models/guard/infer"
    assert body == {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]}
    assert stays == "private"
