"""`shoal dataset` and `shoal build` against a real fleet, with a small program in the compiler's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compiler_stand_in import ROWS, SOURCE, program
from fleet_process import FleetProcess

from cli.build import _files
from cli.profile import supported

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    folder = tmp_path_factory.mktemp("cli-build")
    with FleetProcess(folder / "fleet", compiler_python=program(folder)) as process:
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


def test_from_a_folder_and_a_file_of_examples_to_a_fetched_layout(shoal: Shoal, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in {**SOURCE, "pytorch_model.bin": b"never sent"}.items():
        (folder / name).write_bytes(data)
    added = shoal("dataset", "add", "rows.jsonl", "--name", "lights", "--licence", "CC0-1.0", "--use", "test")
    assert (added.returncode, "CC0-1.0" in added.stdout) == (0, True), added.stderr
    assert "lights" in shoal("dataset", "list").stdout
    assert json.loads(shoal("dataset", "show", "lights", "--json").stdout)["rows"] == 8
    words = ("--version", "1.0.0", "--test", "lights", "--wait", "60")
    done = shoal("build", "submit", "model", "--model", "intents/works", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert "not sent: pytorch_model.bin" in done.stderr
    build = json.loads(done.stdout)
    assert build["state"] == "succeeded"
    assert "intents/works 1.0.0" in shoal("build", "list").stdout
    assert "only few examples" in shoal("build", "show", build["build"]).stdout
    assert "chatter of a library" in shoal("build", "logs", build["build"], "--follow").stdout
    fetched = shoal("build", "fetch", build["build"], "-o", "layout")
    assert fetched.returncode == 0, fetched.stderr
    assert {p.name for p in (tmp_path / "layout").rglob("*") if p.is_file()} == {"oci-layout", "model"}
    assert "exists already" in shoal("build", "fetch", build["build"], "-o", "layout").stderr
    asked = json.loads((tmp_path / "layout" / "blobs" / "model").read_text())["job"]
    assert [profile["name"] for profile in asked["profiles"]] == supported(), "those that nobody named"

    again = shoal("build", "submit", build["source"], "--model", "intents/infeasible", *words)
    assert (again.returncode, "no variant holds" in again.stderr) == (3, True)

    hanging = json.loads(
        shoal("build", "submit", build["source"], "--model", "intents/hangs", *words[:4], "--json").stdout
    )
    cancelled = shoal("build", "cancel", hanging["build"], "--json")
    assert json.loads(cancelled.stdout)["state"] == "cancelled", cancelled.stderr


def test_a_source_that_is_not_there_is_told_before_anything_is_sent(shoal: Shoal) -> None:
    words = ("--model", "intents/works", "--version", "1.0.0", "--test", "lights")
    done = shoal("build", "submit", "nowhere.onnx", *words)
    assert (done.returncode, "no such source" in done.stderr) == (1, True)


def test_a_graph_is_sent_with_its_data_and_its_tokenizer(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.onnx.data", "other.onnx.data", "tokenizer.json", "notes.txt", "net.tflite"):
        (tmp_path / name).write_bytes(b"x")
    assert set(_files(tmp_path / "net.onnx")) == {"net.onnx", "net.onnx.data", "tokenizer.json"}
    assert set(_files(tmp_path / "net.tflite")) == {"net.tflite", "tokenizer.json"}
