"""The real `openai` package asks a real agent process over its Unix socket; a fleet rolled the language model out."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from agent_process import AgentProcess, World
from fleet_process import until
from tiny_bundle import TinyBundle
from tiny_language import gguf_bundle, write_gguf
from tiny_tasks import TASKS

CONTEXT = 4096
QUEUE = 1
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        made = World(folder, stack)
        made.start_fleet()
        yield made


def install(world: World, agent: AgentProcess, bundle: TinyBundle) -> None:
    named = {key: getattr(bundle.manifest, key) for key in ("family", "name", "version")}
    world.publisher.release_layout(bundle.layout)
    world.fleet.api("POST", "/api/v1/rollouts", {**named, "waves": [100], "gates": "install"})
    until(lambda: phases(agent).get(named["name"]) == "committed", within=60)


def phases(agent: AgentProcess) -> dict[str, str]:
    return {u["target"].split("/")[2]: u["phase"] for u in agent.status().get("updates", [])}


@pytest.fixture(scope="module")
def tiny(world: World) -> TinyBundle:
    return gguf_bundle(world.folder / "tiny", write_gguf(world.folder / "tiny.gguf", context=CONTEXT), context=CONTEXT)


@pytest.fixture(scope="module")
def agent(world: World, tiny: TinyBundle) -> AgentProcess:
    made = world.agent("talker-1", SHOAL_AGENT_LANGUAGE_QUEUE=str(QUEUE))
    install(world, made, tiny)
    return made


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[openai.OpenAI]:
    yield from connected(agent)


def connected(agent: AgentProcess) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(agent.state / "agent.sock"))
    with httpx.Client(transport=transport, timeout=60) as http:
        yield openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)


def test_a_model_is_listed_with_its_digest(client: openai.OpenAI, tiny: TinyBundle) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.model_extra["shoal"]["digest"]) == ("assistant", tiny.digest)
    assert client.models.retrieve("assistant").id == "assistant"


def test_a_chat_is_answered_and_says_by_which_digest(client: openai.OpenAI, tiny: TinyBundle) -> None:
    answer = client.chat.completions.create(model="assistant", messages=HELLO, max_tokens=12, temperature=0)
    assert len(answer.choices[0].message.content or "") == 12
    assert answer.choices[0].finish_reason == "length"
    assert answer.system_fingerprint == tiny.digest
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


def test_a_stream_says_the_same_part_by_part_with_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="assistant", messages=HELLO, max_tokens=12, temperature=0)
    stream = client.chat.completions.create(
        model="assistant",
        messages=HELLO,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) == 12
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_stop_sequence_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="assistant", prompt="Hello", max_tokens=12, temperature=0).choices[0].text
    cut = client.completions.create(model="assistant", prompt="Hello", max_tokens=12, temperature=0, stop=whole[4:6])
    assert cut.choices[0].text == whole[: whole.index(whole[4:6])]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str:
        return client.completions.create(model="assistant", prompt="Hello", max_tokens=20, seed=seed).choices[0].text

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_log_probabilities_of_the_chosen_tokens_are_told(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="assistant", messages=HELLO, max_tokens=5, temperature=0, logprobs=True
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(token.token for token in told.content) == answer.choices[0].message.content
    assert all(token.logprob <= 0 for token in told.content)


def test_a_prompt_longer_than_the_context_is_refused_in_openais_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="assistant", prompt="x" * (CONTEXT + 1))
    assert refused.value.code == "context_length_exceeded"
    assert f"takes {CONTEXT}" in str(refused.value)


def test_an_answer_never_passes_the_context(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="assistant", prompt="x" * (CONTEXT - 28), max_tokens=1000)
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ],
)
def test_what_the_device_cannot_do_is_refused_and_named(
    client: openai.OpenAI, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        client.chat.completions.create(**{"model": "assistant", "messages": HELLO, "max_tokens": 4, **changes})


def test_a_model_that_is_not_here_is_the_clouds_and_offline_a_refusal(client: openai.OpenAI, world: World) -> None:
    """The fleet of this test has no upstream: its gateway says so, in the same form."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="gpt-large", messages=HELLO)
    assert refused.value.status_code >= 400
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-large")


def test_a_full_queue_is_refused_at_once_and_those_before_it_are_answered(agent: AgentProcess) -> None:
    """Attack: one app asks for more at once than may wait."""

    async def story() -> tuple[list[Any], float]:
        async with asking(agent) as client:
            first = await client.completions.create(**LONG, stream=True)
            await anext(aiter(first))  # the model answers
            asked = [client.completions.create(model="assistant", prompt=prompt, max_tokens=2) for prompt in "bc"]
            began = time.monotonic()
            # Whichever comes first waits.
            done, waiting = await asyncio.wait(
                map(asyncio.ensure_future, asked), timeout=20, return_when=asyncio.FIRST_COMPLETED
            )
            took = time.monotonic() - began
            await first.close()
            (second,) = waiting
            assert (await second).usage.completion_tokens == 2
            return [task.exception() for task in done], took

    (error,), took = asyncio.run(story())
    assert isinstance(error, openai.APIStatusError)
    assert error.status_code in (429, 503)
    assert error.response.headers["Retry-After"] == "1"
    assert took < 1


def test_the_model_stops_when_the_client_goes_away(agent: AgentProcess) -> None:
    """Without it the next request would wait for all the tokens that nobody reads."""

    async def story() -> int:
        async with asking(agent) as client:
            for _ in range(QUEUE + 3):
                stream = await client.completions.create(**LONG, stream=True)
                await anext(aiter(stream))
                await stream.close()
            answer = await client.completions.create(model="assistant", prompt="b", max_tokens=3)
            return int(answer.usage.completion_tokens)

    assert asyncio.run(story()) == 3


def test_answers_are_counted_and_no_text_of_them_is_logged(agent: AgentProcess, client: openai.OpenAI) -> None:
    secret = "the-word-of-this-test"
    answer = client.completions.create(model="assistant", prompt=secret, max_tokens=4, temperature=0)
    assert secret not in agent.log
    assert (answer.choices[0].text or "?") not in agent.log


def test_a_new_version_answers_after_the_old_one_and_no_request_fails(
    world: World, agent: AgentProcess, tiny: TinyBundle
) -> None:
    """A hot swap of language models: each answer is by exactly one digest."""
    path = write_gguf(world.folder / "two.gguf", context=CONTEXT, seed=2)
    two = gguf_bundle(world.folder / "two", path, context=CONTEXT, version="2.0.0")
    seen: list[str | None] = []
    over = threading.Event()

    def ask() -> None:
        for client in connected(agent):
            while not over.is_set():
                answer = client.completions.create(model="assistant", prompt="Hello", max_tokens=3, temperature=0)
                seen.append(answer.system_fingerprint)

    asking_thread = threading.Thread(target=ask)
    asking_thread.start()
    try:
        install(world, agent, two)
        until(lambda: seen[-1:] == [two.digest])
    finally:
        over.set()
        asking_thread.join()
    assert set(seen) == {tiny.digest, two.digest}
    assert seen == sorted(seen, key=[tiny.digest, two.digest].index)


LONG: dict[str, Any] = {"model": "assistant", "prompt": "a", "max_tokens": CONTEXT}


@asynccontextmanager
async def asking(agent: AgentProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.AsyncHTTPTransport(uds=str(agent.state / "agent.sock"))
    async with httpx.AsyncClient(transport=transport, timeout=60) as http:
        yield openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(world: World) -> Iterator[openai.OpenAI]:
    task = TASKS["sentence-embedding"]
    made = world.agent("encoder-1")
    install(world, made, task.write(world.folder / "encoder", family="intents"))
    yield from connected(made)


def test_embeddings_come_as_base64_and_as_numbers_and_are_the_same(encoder: openai.OpenAI) -> None:
    """The client asks for base64 unless it is told otherwise."""
    ((text, outputs, _),) = TASKS["sentence-embedding"].cases
    usual = encoder.embeddings.create(model="sentence-embedding", input=[text, "turn the lamp on"])
    plain = encoder.embeddings.create(model="sentence-embedding", input=text, encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(outputs["embedding"], abs=1e-4)
    assert usual.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert [data.index for data in usual.data] == [0, 1]
    assert plain.usage.prompt_tokens == len(str(text).split()) + 2


def test_token_arrays_are_refused_with_the_reason(encoder: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send texts"):
        encoder.embeddings.create(model="sentence-embedding", input=[[1, 2, 3]])
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        encoder.chat.completions.create(model="sentence-embedding", messages=HELLO)
