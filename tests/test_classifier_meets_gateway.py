"""The gateway and its classifier: a real fleet, a real agent, asked over its Unix socket.

The model is a tiny one of spoken commands, and "light-on" is what it should not let through: that the parts fit
is shown here; how good a classifier of injections is, `scripts/bench injection` shows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_process import ON, AgentProcess, World
from cloud_stub import CloudStub, cloud_stub
from fleet_process import until

from wire.pipeline import Calibration

ATTACK = ON
QUESTION = "please turn the light off"
UNSURE = "please kitchen"
CALIBRATION = Calibration(method="temperature", temperature=1.0, threshold=0.6, target_error=0.5)
CONFIG = """
[upstreams.main]
url = "URL"
[routes.ok]
[[routes.ok.targets]]
upstream = "main"
[classifiers.guard]
socket = "SOCKET"
model = "kitchen"
label = "light-on"
part = 64
timeout = "20 s"
[classifiers.lenient]
socket = "SOCKET"
model = "kitchen"
label = "light-on"
part = 64
timeout = "20 s"
on_failure = "pass"
[filters.strict]
classifier = "guard"
[filters.lenient]
classifier = "lenient"
"""


@pytest.fixture
def cloud() -> Iterator[CloudStub]:
    with cloud_stub() as stub:
        yield stub


@pytest.fixture
def world(cloud: CloudStub) -> Iterator[World]:
    """A fleet whose gateway asks the agent `guard`, which runs the classifier."""
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        (folder / "fleet").mkdir()
        socket = folder / "guard" / "agent.sock"
        config = CONFIG.replace("URL", cloud.url).replace("SOCKET", str(socket))
        (folder / "fleet" / "gateway.toml").write_text(config)
        world = World(folder, stack)
        world.start_fleet()
        world.bundle("1.0.0", rows=64, calibration=CALIBRATION)
        yield world


def started(world: World, **environment: str) -> AgentProcess:
    agent = world.agent("guard", **environment)
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed", what="the classifier on the agent", within=120)
    return agent


def key_of(world: World, name: str) -> Any:
    return world.fleet.api("POST", "/api/v1/gateway/keys", {"name": name, "limits": {"filters": [name]}})


def ask(world: World, key: Any, text: str) -> httpx.Response:
    body = {"model": "ok", "messages": [{"role": "user", "content": text}]}
    headers = {"Authorization": f"Bearer {key['token']}"}
    return httpx.post(
        f"{world.fleet.url}/v1/chat/completions", json=body, headers=headers, verify=world.fleet.tls(), timeout=60
    )


def told(world: World, key: Any, requests: int) -> list[tuple[str, Any]]:
    """Outcome and verdicts of a key's requests, the oldest first, once all of them are in the audit."""
    path = f"/api/v1/gateway/requests?who=token:{key['name']}"
    rows = until(lambda: len(found := world.fleet.api("GET", path)) == requests and found, what="the audit")
    return [(row["outcome"], json.loads(row["verdicts"] or "{}")) for row in reversed(rows)]


def metrics(world: World) -> str:
    headers = {"Authorization": f"Bearer {world.fleet.token}"}
    return world.fleet.request("GET", "/api/v1/gateway/metrics", headers=headers)[1].decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_attack_is_blocked_a_question_passes_and_a_dead_agent_is_what_was_configured(
    world: World, cloud: CloudStub
) -> None:
    """Accident: the agent with the classifier is killed. Attack: a prompt that no heuristic knows."""
    agent = started(world)
    strict, lenient = key_of(world, "strict"), key_of(world, "lenient")
    blocked = ask(world, strict, ATTACK)
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (400, "content-filter")
    assert cloud.seen == []
    assert ask(world, strict, QUESTION).status_code == 200
    # Behind more text than the model reads at once, and with letters that only look like others.
    assert ask(world, strict, "\n".join([QUESTION] * 40 + [ATTACK] * 4)).status_code == 400
    assert ask(world, strict, ATTACK.replace("a", "\N{FULLWIDTH LATIN SMALL LETTER A}\u200b")).status_code == 400
    assert ask(world, lenient, ATTACK).status_code == 400
    agent.kill()
    refused = ask(world, strict, QUESTION)
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (
        503,
        "unavailable",
        "5",
    )
    assert "classifier guard: it could not judge the request" in refused.json()["error"]["message"]
    assert ask(world, lenient, QUESTION).status_code == 200
    assert told(world, strict, 5) == [
        ("blocked", {"strict/classifier guard blocked": 1}),
        ("answered", {}),
        ("blocked", {"strict/classifier guard blocked": 1}),
        ("blocked", {"strict/classifier guard blocked": 1}),
        ("failed", {"strict/classifier guard not-judged refused": 1}),
    ]
    assert told(world, lenient, 2) == [
        ("blocked", {"lenient/classifier lenient blocked": 1}),
        ("answered", {"lenient/classifier lenient not-judged noted": 1}),
    ]
    assert 'shoal_gateway_classifier_seconds_count{classifier="guard"} 5' in metrics(world)
    assert 'shoal_gateway_classifier_seconds_count{classifier="lenient"} 2' in metrics(world)
    assert ATTACK not in world.fleet.log + agent.log


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_unsure_classifier_asks_nobody_about_a_prompt_that_was_not_let_through(
    world: World, cloud: CloudStub
) -> None:
    """Attack: an agent that asks the cloud when it is unsure would send the prompt round the filter."""
    agent = started(world, SHOAL_AGENT_CLOUD_MODEL="ok", SHOAL_AGENT_CLOUD_ANSWER="20 s")
    text = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [UNSURE]}]}

    def asks_the_cloud() -> bool:
        agent.ask("POST", "/v2/models/kitchen/infer", text)
        return bool(cloud.seen)

    until(asks_the_cloud, what="an unsure answer of the agent in the cloud")
    cloud.seen.clear()
    assert ask(world, key_of(world, "strict"), UNSURE).status_code == 200
    (only,) = cloud.seen
    assert only["messages"] == [{"role": "user", "content": UNSURE}]
