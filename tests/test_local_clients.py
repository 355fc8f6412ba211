"""Standard clients against a real agent process: tritonclient, curl and JavaScript, as the docs show them.

The agent has two models, one that reads text and one of plain tensors, and answers on its socket and on loopback TCP.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quick_model
import tritonclient.http as triton
from agent_process import AgentProcess, World
from fleet_process import until
from raw_http import RawClient, get, post
from tiny_bundle import TinyBundle
from tritonclient.utils import InferenceServerException

PAGE = Path(__file__).parent.parent / "docs/start/product-app.md"


@dataclass
class Box:
    """The device: its agent, where it answers over TCP, its token, and what it serves."""

    agent: AgentProcess
    address: str
    token: str
    text: TinyBundle
    tensors: TinyBundle

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def at(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        world = World(folder, stack)
        world.start_fleet()
        text = world.bundle("1.0.0")
        tensors = quick_model.write(folder / "layout-voice", "1.0.0", name="voice")
        world.publisher.release_layout(folder / "layout-voice")
        agent = world.agent("kitchen-1", SHOAL_AGENT_TCP="127.0.0.1:0")
        for name in ("kitchen", "voice"):
            body = {"family": "intents", "name": name, "version": "1.0.0", "waves": [100], "gates": "install"}
            world.fleet.api("POST", "/api/v1/rollouts", body)
        until(lambda: [u["phase"] for u in agent.status()["updates"]] == ["committed"] * 2, within=60)
        yield Box(agent, agent.tcp_address(), agent.token(), text, tensors)


@pytest.fixture
def client(box: Box) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(box.address) as made:
        yield made


def words(*texts: str, binary: bool) -> list[triton.InferInput]:
    made = triton.InferInput("text", [len(texts)], "BYTES")
    made.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), binary_data=binary)
    return [made]


@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize("out", [True, False])
def test_tritonclient_sends_text_and_gets_labels(box: Box, client, into: bool, out: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=out) for name in ("label", "scores")]
    asked = words("turn the light on", "play some music", binary=into)
    answer = client.infer("kitchen", asked, outputs=wanted, request_id="mine", headers=box.headers)
    labels = [label.decode() if out else label for label in answer.as_numpy("label")]
    assert labels == ["light-on", "music"]
    assert answer.as_numpy("scores").shape == (2, 3)
    assert answer.as_numpy("score") is None
    told = answer.get_response()
    assert (told["model_version"], told["id"]) == (box.text.digest, "mine")


@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize("out", [True, False, None])
def test_tritonclient_sends_tensors_and_gets_what_the_runtime_gives(box: Box, client, into: bool, out) -> None:
    frames = quick_model.frame(5)
    model = box.tensors.blob(box.tensors.manifest.file("model").digest).read_bytes()
    expected = quick_model.answer(model, frames)
    inputs = []
    for name, values in frames.items():
        inputs.append(triton.InferInput(name, list(values.shape), "FP32"))
        inputs[-1].set_data_from_numpy(values, binary_data=into)
    wanted = None if out is None else [triton.InferRequestedOutput(name, binary_data=out) for name in expected]
    for _ in range(2):  # the second of the same form is read by what the first left
        answer = client.infer("voice", inputs, outputs=wanted, headers=box.headers)
        for name, values in expected.items():
            np.testing.assert_allclose(answer.as_numpy(name), values, atol=1e-5)
            assert answer.as_numpy(name).dtype == np.float32


def test_tritonclient_reads_what_the_server_and_its_models_are(box: Box, client) -> None:
    asking = {"headers": box.headers}
    assert client.is_server_live(**asking)
    assert client.is_server_ready(**asking)
    assert client.is_model_ready("voice", **asking)
    assert "binary_tensor_data" in client.get_server_metadata(**asking)["extensions"]
    about = client.get_model_metadata("voice", **asking)
    assert about["versions"] == [box.tensors.digest]
    assert [(t["name"], t["datatype"], t["shape"]) for t in about["inputs"]] == [
        (name, "FP32", [1, n]) for name, n in quick_model.INPUTS.items()
    ]
    listed = client.get_model_repository_index(**asking)
    assert {(m["name"], m["version"], m["state"]) for m in listed} == {
        ("kitchen", box.text.digest, "READY"),
        ("voice", box.tensors.digest, "READY"),
    }


def test_tritonclient_names_a_version_by_its_digest_and_another_is_not_found(box: Box, client) -> None:
    asked, digest = words("turn the light on", binary=True), box.text.digest
    answer = client.infer("kitchen", asked, model_version=digest, headers=box.headers)
    assert answer.get_response()["model_version"] == digest
    assert client.is_model_ready("kitchen", digest, headers=box.headers)
    other = "sha256:" + "0" * 64
    with pytest.raises(InferenceServerException, match=f"does not answer here: {digest} does") as caught:
        client.infer("kitchen", asked, model_version=other, headers=box.headers)
    assert caught.value.status() == "404"
    assert not client.is_model_ready("kitchen", other, headers=box.headers)


def test_tritonclient_reads_statistics_that_count_its_requests(box: Box, client) -> None:
    def told() -> Any:
        (stats,) = client.get_inference_statistics("kitchen", headers=box.headers)["model_stats"]
        return stats

    before = told()
    client.infer("kitchen", words("lamp on", "lamp on please", binary=True), headers=box.headers)
    after = told()
    assert after["version"] == box.text.digest
    assert after["inference_count"] - before["inference_count"] == 2
    counts = [stats["inference_stats"]["success"] for stats in (before, after)]
    assert counts[1]["count"] - counts[0]["count"] == 1
    assert counts[1]["ns"] > counts[0]["ns"]
    both = client.get_inference_statistics(headers=box.headers)["model_stats"]
    assert {stats["name"] for stats in both} == {"kitchen", "voice"}


def test_tritonclient_is_told_what_it_did_wrong(box: Box, client) -> None:
    with pytest.raises(InferenceServerException, match="over TCP a request needs 'Authorization: Bearer") as caught:
        client.infer("kitchen", words("lamp on", binary=True))
    assert caught.value.status() == "401"
    with pytest.raises(InferenceServerException, match="not on this device, there are: kitchen, voice"):
        client.infer("lock", words("lamp on", binary=True), headers=box.headers)
    with pytest.raises(InferenceServerException, match="parameter sequence_id: not supported"):
        client.infer("kitchen", words("lamp on", binary=True), sequence_id=7, headers=box.headers)


# --- the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8470"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "shoal.example"}, 403),
        ({"host": "localhost.shoal.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://shoal.example"}, 403),
        ({"origin": "null"}, 403),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Basic abc"}, 401),
        ({"authorization": "Bearer wrong"}, 401),
    ],
)
def test_over_tcp_only_the_token_and_a_local_name_come_in(box: Box, fields: dict[str, str], status: int) -> None:
    """Attack: another user's process without the token, and a web page whose name was resolved to 127.0.0.1."""
    given = {"authorization": f"Bearer {box.token}", **fields}
    with RawClient(box.at()) as client:
        found, headers, _ = client.ask(get("/v2", given))
    assert found == status
    assert ("www-authenticate" in headers) == (status == 401)


def test_a_body_of_a_stranger_is_not_read(box: Box) -> None:
    with RawClient(box.at()) as client:
        client.socket.sendall(post("/v2/models/kitchen/infer", b"x" * 100)[:-100])
        assert client.reply()[0] == 401


def test_the_token_is_this_devices_alone_and_stays(box: Box) -> None:
    path = box.agent.state / "api.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() == box.token
    assert len(box.token) >= 40


def test_every_answer_names_the_model_and_its_version(box: Box) -> None:
    with RawClient(box.agent.state / "agent.sock") as client:
        for path in ("/v2/models/kitchen", "/v2/models/kitchen/ready"):
            _, headers, _ = client.ask(get(path))
            assert (headers["shoal-model-digest"], headers["shoal-model-version"]) == (box.text.digest, "1.0.0")


def test_metrics_count_what_was_asked_and_show_no_input(box: Box) -> None:
    with RawClient(box.agent.state / "agent.sock") as client:
        before = metrics(client)
        assert box.agent.infer("turn the light on please my secret")[0] == 200
        assert box.agent.ask("POST", "/v2/models/kitchen/infer", {})[0] == 400
        after = metrics(client)
    labels = f'model="kitchen",digest="{box.text.digest}"'
    answered = f'shoal_model_requests_total{{{labels},outcome="answered"}}'
    assert after[answered] - before[answered] == 1
    count, bucket = f"shoal_model_latency_seconds_count{{{labels}}}", f"shoal_model_latency_seconds_bucket{{{labels}"
    assert after[count] - before[count] == 1
    assert after[f'{bucket},le="+Inf"}}'] == after[count]
    code = 'shoal_http_replies_total{code="400"}'
    assert after[code] - before.get(code, 0) == 1
    assert after["shoal_agent_online"] == 1
    assert after["process_resident_memory_bytes"] > 10e6
    assert not any("secret" in name or "light-on" in name for name in after)
    assert "secret" not in box.agent.log


def metrics(client: RawClient) -> dict[str, float]:
    """Samples by name and labels; every line must have the form of the format."""
    status, headers, body = client.ask(get("/metrics"))
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = {}
    for line in body.decode().splitlines():
        if not line.startswith("# "):
            match = re.fullmatch(r'([a-z_]+(?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) ([0-9.e+-]+)', line)
            assert match, line
            found[match[1]] = float(match[2])
    return found


# --- the docs -----------------------------------------------------------------------------------------------------

RUNNERS = {"bash": ["bash", "-eu"], "python": [sys.executable, "-"], "javascript": ["node", "--input-type=module", "-"]}


def examples() -> list[tuple[str, str]]:
    """Language and text of every example of the page that can be run."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in RUNNERS]


@pytest.mark.parametrize(("language", "text"), examples(), ids=[language for language, _ in examples()])
def test_an_example_of_the_docs_runs(box: Box, language: str, text: str) -> None:
    if shutil.which(RUNNERS[language][0]) is None:
        pytest.skip(f"{RUNNERS[language][0]} is not here")
    for shown, real in (
        ("/var/lib/shoal/agent.sock", str(box.agent.state / "agent.sock")),
        ("/var/lib/shoal", str(box.agent.state)),
        ("127.0.0.1:8470", box.address),
        ("shoal-agent ", f"{sys.executable} -m agent.main "),
        ("models/home", "models/kitchen"),
        ('"home"', '"kitchen"'),
        ("turn on the kitchen light", "turn the light on"),
        ("HassTurnOn", "light-on"),
    ):
        text = text.replace(shown, real)
    ran = subprocess.run(
        RUNNERS[language],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "SHOAL_TOKEN": box.token},
    )
    assert ran.returncode == 0, ran.stderr
    assert "light-on" in ran.stdout, ran.stdout


def test_the_page_has_an_example_in_each_language() -> None:
    assert {language for language, _ in examples()} == set(RUNNERS)
