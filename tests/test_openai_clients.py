"""The real `openai` package asks a real agent process over its Unix socket; a fleet rolled the language model out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest
from agent_process import AgentProcess, World
from fleet_process import until
from tiny_bundle import TinyBundle
from tiny_language import gguf_bundle, write_gguf

CONTEXT = 128
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
    world.fleet.api("POST", "/api/v1/rollouts", {**named, "waves": [100]})
    until(lambda: phases(agent).get(named["name"]) == "committed", within=60)


def phases(agent: AgentProcess) -> dict[str, str]:
    return {u["target"].split("/")[2]: u["phase"] for u in agent.status().get("updates", [])}


@pytest.fixture(scope="module")
def tiny(world: World) -> TinyBundle:
    return gguf_bundle(world.folder / "tiny", write_gguf(world.folder / "tiny.gguf"), context=CONTEXT)


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
