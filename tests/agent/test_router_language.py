"""Local or cloud for language models: a real one over the local API's socket, and the router with answers given."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cloud_stand_in import Recording, recording
from fleet_process import until
from local_stage import opened, routed, served
from raw_http import RawClient, post
from tiny_bundle import TinyBundle
from tiny_language import gguf_bundle, write_gguf

from agent.errors import TooLong, Unavailable
from agent.life.telemetry import WindowMeter
from agent.serving.api import LocalApi
from agent.serving.cloud import Late
from agent.serving.exchange import Reply, Request
from agent.serving.generating import QUEUE
from agent.serving.openai import CHAT, COMPLETIONS, HELD
from agent.serving.routed import LocalChat, Said, Withheld
from agent.serving.router import Router
from agent.serving.service import Served

CONTEXT = 4096
SECRET = "the cat is under the blue bed"
TOOLS = {"tools": [{"type": "function", "function": {"name": "lamp", "parameters": {}}}]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    folder = tmp_path_factory.mktemp("language")
    return gguf_bundle(folder / "layout", write_gguf(folder / "tiny.gguf", context=CONTEXT), context=CONTEXT)


class Stage:
    """A device with a language model: `ask` is what an app asks. `line` is whether the fleet can be reached."""

    def __init__(self, path: Path, api: LocalApi, router: Router, meter: WindowMeter, line: list[bool]) -> None:
        self.path, self.api, self.router, self.meter, self.line = path, api, router, meter, line

    async def ask(self, headers: dict[str, str] | None = None, **fields: object) -> tuple[int, str, str]:
        """Status, the header that says where from, and the body."""
        return await asyncio.to_thread(asked, self.path, CHAT, question(**fields), headers or {})

    async def says(self, headers: dict[str, str] | None = None, **fields: object) -> str:
        """The text of an answer that was given here."""
        status, _, body = await self.ask(headers, **fields)
        assert status == 200, body
        if not fields.get("stream"):
            return str(json.loads(body)["choices"][0]["message"]["content"])
        events = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
        assert body.endswith("data: [DONE]\n\n")
        return "".join(e["choices"][0]["delta"].get("content", "") for e in events)

    async def until(self, holds: Callable[[], Any]) -> None:
        await asyncio.to_thread(until, holds, what="the model's end")

    def is_free(self) -> bool:
        return not sum(self.api._openai._generating._under_way.values())


def question(**fields: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": SECRET}]
    return {"model": "assistant", "messages": messages, "max_tokens": 40, "temperature": 0, **fields}


def asked(path: Path, route: str, body: object, headers: dict[str, str]) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        connection.request("POST", route, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Shoal-Route", ""), answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def stage(tiny: TinyBundle, authority: Any, short_folder: Path) -> Callable[..., None]:
    """Run a story against a served language model and a recording gateway."""

    def run(story: Any, *, online: bool = True, **settings: Any) -> None:
        async def body(cloud: Recording) -> None:
            line = [online]
            up = {"cloud_answer": 5.0, **settings}
            routing = routed(cloud.url, authority, short_folder, lambda: line[0], **up)
            options = {"name": "assistant", "online": lambda: line[0], "body_limit": 256 * 1024}
            async with served(short_folder, opened(tiny), routing=routing, **options) as local:
                await story(Stage(short_folder / "s", local.api, local.router, local.meter, line), cloud)

        with recording(authority) as cloud:
            cloud.answer = lambda _question: (200, "from the cloud")
            asyncio.run(body(cloud))

    return run


# --- confidence -------------------------------------------------------------------------------------------------------


def test_an_answer_with_a_guess_in_it_goes_up_whole_or_streamed_and_nothing_of_it_is_sent(stage: Any) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        for stream in (False, True):
            status, where, body = await s.ask(stream=stream)
            assert (status, where) == (200, "cloud; reason=unsure")
            assert json.loads(body)["choices"][0]["message"]["content"] == "from the cloud"
            assert cloud.questions[-1] == {**question(stream=stream), "model": "large"}
        await s.until(s.is_free)  # the stream that nobody wanted has stopped
        assert (await s.ask())[1] == "cloud; reason=unsure"

    stage(story, words_below=100)


def test_a_sure_answer_stays_and_a_stream_that_was_held_back_says_the_same(stage: Any) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        whole = await s.says()
        assert len(whole) == 40
        assert await s.says(stream=True) == whole
        assert (await s.ask(max_tokens=HELD // 2, stream=True))[1] == "local; reason=sure"
        assert await s.says(max_tokens=HELD // 2, stream=True) == whole[: HELD // 2]
        assert cloud.questions == []
        (stats,) = s.meter.close()
        assert stats.routes == {"local sure": 4}

    stage(story, words_below=1)


def test_a_stream_is_judged_by_what_was_held_back_of_it(stage: Any) -> None:
    async def story(s: Stage, _cloud: Recording) -> None:
        _, _, body = await s.ask(logprobs=True)
        likely = [math.exp(token["logprob"]) for token in json.loads(body)["choices"][0]["logprobs"]["content"]]
        await s.ask(stream=True)
        whole, stream = (one["confidence"] for one in s.router.view()["newest"])
        assert whole == pytest.approx(sorted(likely)[3], abs=0.001)  # of 40: all but a tenth reach it
        assert stream == pytest.approx(sorted(likely[:HELD])[1], abs=0.001)
        assert whole != stream

    stage(story, words_below=1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cloud_that_is_of_no_help_leaves_the_devices_answer(stage: Any, stream: bool) -> None:
    release = threading.Event()

    async def story(s: Stage, cloud: Recording) -> None:
        alone = await s.says({"Shoal-Route": "local"}, stream=stream)
        for answer in (lambda _: (500, ""), lambda _: (release.wait(20), (200, "x"))[1]):
            cloud.answer = answer
            assert await s.says(stream=stream) == alone
        decisions = s.router.view()["decisions"]
        assert decisions == {"local asked": 1, "local failed": 1, "local late": 1}

    try:
        stage(story, words_below=100, cloud_answer=0.5)
    finally:
        release.set()


def test_an_app_that_leaves_while_the_cloud_is_asked_stops_the_model_here_and_there(stage: Any) -> None:
    release = threading.Event()

    async def story(s: Stage, cloud: Recording) -> None:
        cloud.answer = lambda _: (release.wait(20), (200, "x"))[1]
        with RawClient(s.path) as leaving:
            leaving.socket.sendall(post(CHAT, json.dumps(question(stream=True, max_tokens=CONTEXT)).encode()))
            await s.until(lambda: cloud.questions)
            assert not s.is_free()
        await s.until(s.is_free)
        await s.until(lambda: not s.router._cloud._under_way)

    try:
        stage(story, words_below=100)
    finally:
        release.set()


def test_answers_made_to_be_unsure_do_not_get_past_the_cap(stage: Any) -> None:
    """As for classifiers; what is too long for the device is within the same cap."""

    async def story(s: Stage, cloud: Recording) -> None:
        routes = [(await s.ask(stream=bool(i % 2), max_tokens=4))[1] for i in range(6)]
        assert routes == ["cloud; reason=unsure"] * 2 + ["local; reason=budget"] * 4
        status, _, body = await s.ask(messages=[{"role": "user", "content": "x" * CONTEXT}])
        assert (status, "as many requests went up" in body) == (503, True)
        assert len(cloud.questions) == 2

    stage(story, words_below=100, escalations=12)


# --- capability and length --------------------------------------------------------------------------------------------

TOO_LONG = {"messages": [{"role": "user", "content": "x" * CONTEXT}]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (TOOLS, "capability"),
        ({"n": 2}, "capability"),
        ({"response_format": {"type": "json_object"}}, "capability"),
        ({"messages": [{"role": "tool", "content": "12", "tool_call_id": "1"}]}, "capability"),
        (TOO_LONG, "context"),
        ({**TOO_LONG, "stream": True}, "context"),
    ],
)
def test_what_the_model_here_cannot_do_goes_up_or_is_refused_by_name(stage: Any, fields: Any, reason: str) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        status, where, body = await s.ask(**fields)
        assert (status, where) == (200, f"cloud; reason={reason}")
        assert "from the cloud" in body
        assert cloud.questions[0]["model"] == "large"
        status, _, body = await s.ask({"Shoal-Data": "private"}, **fields)
        assert (status, json.loads(body)["error"]["code"]) == (403, "withheld")
        status, _, body = await s.ask({"Shoal-Route": "local"}, **fields)
        code = "context_length_exceeded" if reason == "context" else "unsupported"
        assert (status, json.loads(body)["error"]["code"]) == (400, code)
        assert len(cloud.questions) == 1

    stage(story)


def test_more_than_may_wait_for_the_model_goes_up_and_what_stays_is_told_when_to_come_back(
    stage: Any, tiny: TinyBundle
) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        long = post(CHAT, json.dumps(question(stream=True, max_tokens=CONTEXT)).encode())
        with ExitStack() as apps:
            for _ in range(1 + QUEUE):
                apps.enter_context(RawClient(s.path)).socket.sendall(long)
            await s.until(lambda: s.api._openai._generating._under_way[tiny.digest] == 1 + QUEUE)
            for stream in (False, True):
                status, where, body = await s.ask(stream=stream)
                assert (status, where) == (200, "cloud; reason=busy")
                assert "from the cloud" in body
            # The third is over the cap of what goes up by itself.
            for headers in ({}, {"Shoal-Data": "private"}, {"Shoal-Route": "local"}):
                status, _, body = await s.ask(headers)
                assert (status, json.loads(body)["error"]["code"]) == (503, "busy")
            assert len(cloud.questions) == 2
        await s.until(s.is_free)
        decisions = s.router.view()["decisions"]
        assert (decisions["cloud busy"], decisions["refuse busy"]) == (2, 3)

    stage(story, escalations=12)


def test_what_no_model_takes_is_refused_and_sent_nowhere(stage: Any) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        for fields in ({"temperature": 7}, {"messages": []}, {"stop": 3}):
            status, _, body = await s.ask(**fields)
            assert (status, json.loads(body)["error"]["code"]) == (400, "malformed")
        status, where, _ = await asyncio.to_thread(
            asked, s.path, COMPLETIONS, {"model": "assistant", "prompt": "a"}, {}
        )
        assert (status, where) == (200, "local; reason=sure")
        assert cloud.questions == []

    stage(story)


# --- where the app or the line says so --------------------------------------------------------------------------------


def test_an_app_may_ask_for_the_cloud_by_header_and_keep_private_what_is_private(stage: Any) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        assert (await s.ask({"Shoal-Route": "cloud"}))[1] == "cloud; reason=asked"
        assert len(cloud.questions) == 1
        for stream in (False, True):
            assert (await s.ask({"Shoal-Data": "private"}, stream=stream))[1] == "local; reason=private"
        assert len(cloud.questions) == 1
        told_of = json.dumps([s.router.view(), [stats.to_value() for stats in s.meter.close()]])
        assert not any(word in told_of for word in ("cat", "blue", "bed"))
        assert '"local private": 2' in told_of

    stage(story, words_below=100)


@pytest.mark.alone
def test_offline_the_device_answers_or_refuses_at_once(stage: Any) -> None:
    async def story(s: Stage, cloud: Recording) -> None:
        status, where, _ = await s.ask()
        assert (status, where) == (200, "local; reason=offline")
        for headers, fields in (({}, TOOLS), ({"Shoal-Route": "cloud"}, {}), ({}, TOO_LONG)):
            times = []
            for _ in range(9):
                started = time.perf_counter()
                status, _, body = await s.ask(headers, **fields)
                times.append(time.perf_counter() - started)
                assert (status, json.loads(body)["error"]["code"]) == (503, "offline")
            # Some may meet the machine's other work: what is promised is that nothing is waited for.
            assert statistics.median(times) < 0.05
        waiting = asyncio.ensure_future(s.ask({"Shoal-Queue": "20"}, **TOO_LONG))
        await s.until(lambda: s.router.view()["waiting"] == 1)
        s.line[0] = True
        s.router.line_is_up()
        assert (await waiting)[1] == "cloud; reason=context"

    stage(story, online=False, words_below=100)


def test_a_request_is_answered_by_the_model_that_it_was_read_for(stage: Any, tiny: TinyBundle) -> None:
    """Accident: a switch while one request is answered and one waits for its turn."""

    async def story(s: Stage, _cloud: Recording) -> None:
        service = s.api._service
        first, second = (asyncio.ensure_future(s.ask({"Shoal-Route": "local"}, max_tokens=400)) for _ in range(2))
        await s.until(lambda: s.api._openai._generating._under_way[tiny.digest] == 2)
        other = await asyncio.to_thread(Served.load, opened(tiny), {})
        other.digest = "sha256:other"
        service.try_out("assistant", other)
        service.commit("assistant")
        third = await s.ask({"Shoal-Route": "local"}, max_tokens=1)
        answers = [json.loads(body)["system_fingerprint"] for _, _, body in (await first, await second, third)]
        assert answers == [tiny.digest, tiny.digest, "sha256:other"]

    stage(story)


# --- the router alone -------------------------------------------------------------------------------------------------


def chatting(story, authority, short_folder, **settings: Any) -> None:
    """The router alone, with a language model's answers given."""

    async def body(cloud: Recording) -> None:
        router = routed(cloud.url, authority, short_folder, lambda: True, **settings)(WindowMeter())
        await story(router, cloud)

    with recording(authority) as cloud:
        asyncio.run(body(cloud))


class Told:
    """A language model whose answers are given."""

    def __init__(self, *probabilities: float, tokens: int = 5) -> None:
        self.probabilities, self.tokens, self.dropped = probabilities, tokens, 0
        self.judged: list[bool] = []
        self.chat = LocalChat("small", "sha256:small", self.answer)

    async def answer(self, judged: bool) -> Said:
        self.judged.append(judged)
        if self.tokens > 100:
            raise TooLong("too long", self.tokens, 100)
        return Said(Reply.json(200, {"from": "here"}), self.probabilities, self.drop)

    async def drop(self) -> None:
        self.dropped += 1


QUESTION = Request(
    "POST", "/v1/chat/completions", {}, b'{"model": "small", "messages": [{"role": "u", "content": "q"}]}'
)


async def drained(reply: Reply) -> str:
    if isinstance(reply.body, bytes):
        return reply.body.decode()
    return b"".join([part async for part in reply.body]).decode()


def test_a_language_model_that_guessed_a_word_is_not_believed(authority, short_folder) -> None:
    async def story(router: Router, cloud: Recording) -> None:
        cloud.answer = lambda _question: (200, "from the cloud")
        right, guess, last = Told(*[0.9] * 20), Told(*[0.9] * 18, 0.1, 0.1), Told(0.1)
        sure = await router.chat(QUESTION, right.chat)
        assert (sure.headers["Shoal-Route"], await drained(sure)) == ("local; reason=sure", '{"from":"here"}')
        unsure = await router.chat(QUESTION, guess.chat)
        assert unsure.headers["Shoal-Route"] == "cloud; reason=unsure"
        assert "from the cloud" in await drained(unsure)
        assert cloud.questions[0]["model"] == "large"  # and not the name of the model here
        long = await router.chat(QUESTION, Told(0.9, tokens=101).chat)
        assert long.headers["Shoal-Route"] == "cloud; reason=context"
        await drained(long)
        cloud.answer = lambda _question: (500, "")
        kept = await router.chat(QUESTION, last.chat)
        assert (kept.headers["Shoal-Route"], await drained(kept)) == ("local; reason=failed", '{"from":"here"}')
        assert [one.dropped for one in (right, guess, last)] == [0, 1, 0]

    chatting(story, authority, short_folder, words_below=50)


def test_a_private_chat_that_is_too_long_for_the_device_is_refused(authority, short_folder) -> None:
    async def story(router: Router, cloud: Recording) -> None:
        private = Request("POST", QUESTION.path, {"shoal-data": "private"}, QUESTION.body)
        unsure = Told(0.01)
        assert (await router.chat(private, unsure.chat)).headers["Shoal-Route"] == "local; reason=private"
        assert unsure.judged == [False]  # nothing of a stream that stays is held back
        with pytest.raises(Withheld, match="stay on this device"):
            await router.chat(private, Told(0.9, tokens=101).chat)
        assert cloud.questions == []

    chatting(story, authority, short_folder, words_below=50)


def test_threads_of_requests_that_were_given_up_are_counted_until_they_end(authority, short_folder) -> None:
    """Or eight answers that do not come would leave the next request waiting for a thread instead of being told."""
    release = threading.Event()

    async def story(router: Router, cloud: Recording) -> None:
        cloud.answer = lambda _question: (release.wait(20), (200, "x"))[1]
        hurried = Request("POST", QUESTION.path, {"shoal-deadline-ms": "2000"}, QUESTION.body)
        asking = asyncio.gather(*(router.chat(hurried) for _ in range(8)), return_exceptions=True)
        await asyncio.to_thread(until, lambda: len(cloud.questions) == 8, what="the requests")
        with pytest.raises(Unavailable, match="8 requests to the cloud tier are under way"):
            await router.chat(QUESTION)
        assert all(isinstance(e, Late) for e in await asking)
        # The cloud stalls yet: to give them up has ended their connections, and so their threads.
        await asyncio.to_thread(until, lambda: not router._cloud._under_way, within=1.5, what="the threads")
        release.set()
        await drained(await router.chat(QUESTION))

    try:
        chatting(story, authority, short_folder)
    finally:
        release.set()


def test_who_does_not_wait_for_the_cloud_ends_the_work_there(authority, short_folder) -> None:
    """The connection ends at once, and not when the answer is there: a model may take minutes for it."""
    release = threading.Event()

    async def story(router: Router, cloud: Recording) -> None:
        cloud.answer = lambda _question: (release.wait(20), (200, "x"))[1]
        asking = asyncio.create_task(router.chat(QUESTION))
        await asyncio.to_thread(until, lambda: cloud.questions, what="the request")
        asking.cancel()
        await asyncio.to_thread(until, lambda: not router._cloud._under_way, within=1.5, what="the end of the line")
        assert asking.cancelled()
        release.set()

    try:
        chatting(story, authority, short_folder)
    finally:
        release.set()
