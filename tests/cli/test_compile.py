"""`shoal compile` as it is typed: its spellings, its table, Ctrl-C, and what it refuses before any work."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evidence_of import evidence, manifest
from rich.console import Console

from cli import compile as command
from cli import compiling
from cli.compiling import follow, run
from cli.errors import Infeasible, Stopped
from compiler.bundle.layout import Layout
from compiler.bundle.pack import Packer
from compiler.report.bom import bom
from compiler.report.card import card
from wire.build import Progress
from wire.chunks import digest

OPTIONS = ("--model", "a/b", "--version", "1", "--test-set", "t.jsonl", "-o", "out", "--cache", "cache")


def shoal(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SHOAL_", "MLFLOW_"))}
    line = [sys.executable, "-P", "-m", "cli", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=clean, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t.jsonl").write_text('{"text": "on", "label": "a"}\n')
    (tmp_path / "src").mkdir()
    return tmp_path


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with two bundles whose files are not there, and their evidence, which is."""
    for profile in ("raspberry-pi-4", "x86-64"):
        made = manifest(profile)
        record = evidence(subject=digest(made.to_bytes()), target=made.target)
        named = {"family": made.family, "name": made.name, "version": made.version, "profile": profile}
        with Packer(tmp_path / "out") as packer:
            bundle = packer.add_bundle(made, [])
            packer.add_evidence(bundle, record, card=card(record, named), bom=bom(record, made))
            packer.publish()
    return tmp_path / "out"


def test_what_devices_measured_is_added_to_the_page_or_refused_with_its_digest(layout: Path, tmp_path: Path) -> None:
    bundle = Layout(layout).bundles()[0]
    figure = {"metric": "latency_p50", "value": 31.5, "unit": "ms", "n": 300, "kind": "measured", "device": "kitchen-1"}
    named = {**figure, "target": bundle.manifest.target, "digest": bundle.digest, "job": "j1"}
    (tmp_path / "taken.json").write_text(json.dumps([named]))
    words = ("compile", "report", str(layout), "--measured", "taken.json", "--output", "page.html")
    assert shoal(*words, cwd=tmp_path).returncode == 0
    assert "kitchen-1" in (tmp_path / "page.html").read_text()
    (tmp_path / "taken.json").write_text(json.dumps([{**named, "digest": "sha256:" + "f" * 64}]))
    refused = shoal(*words, cwd=tmp_path)
    assert refused.returncode == 1
    assert "is no bundle of this page" in " ".join(refused.stderr.split())
    (tmp_path / "taken.json").write_text('{"metric": 1}')
    assert "not what 'shoal measure show" in " ".join(shoal(*words, cwd=tmp_path).stderr.split())


# --- what is refused before any work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--worker", "tflite-runtime"), "expected a runtime and its Python"),
        (("--worker", "tflite-runtime=/nowhere/python"), "this Python for tflite-runtime does not exist"),
        (("--memory", "3"), "B, KB, MB"),
        (("--confidence", "95"), "expected 0.5 or more and below 1"),
        (("--max-drop", "101"), "max_drop from 0 to 100"),
        (("--calibration", "none.jsonl"), "this calibration set does not exist"),
        (("--describe", "none.toml"), "this description does not exist"),
        (("--minimise", "beauty"), "beauty"),
    ],
)
def test_an_option_that_cannot_be_is_told_and_nothing_is_written(
    folder: Path, words: tuple[str, ...], message: str
) -> None:
    done = shoal("compile", "src", *OPTIONS, "--profile", "x86-64", *words, cwd=folder)
    assert message in " ".join(done.stderr.split())
    assert done.returncode in (1, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["src", "t.jsonl"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/intents@champion", "MLFLOW_TRACKING_URI is not set"),
        ("python:package.module:function", "needs a description"),
        ("./models:/intents@champion", "this source model does not exist"),
    ],
)
def test_a_source_that_is_no_path_is_left_to_the_compiler(folder: Path, source: str, message: str) -> None:
    done = shoal("compile", source, *OPTIONS, "--profile", "x86-64", cwd=folder)
    assert message in done.stderr
    assert done.returncode == 1
    assert not (folder / "out").exists()


# --- spellings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["verify", "--verify"])
def test_verify_is_a_command_and_an_option(folder: Path, word: str) -> None:
    done = shoal("compile", word, "src", "--source", "src", "--test-set", "t.jsonl", cwd=folder)
    assert "oci-layout" in done.stderr
    assert done.returncode == 1


def test_options_may_come_before_the_source(folder: Path) -> None:
    assert "toaster" in shoal("compile", "--profile", "toaster", *OPTIONS, "src", cwd=folder).stderr


@pytest.mark.parametrize("name", ["build", "./verify", "./report"])
def test_a_source_may_be_named_like_a_command(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    assert "toaster" in shoal("compile", name, *OPTIONS, "--profile", "toaster", cwd=folder).stderr


def test_the_help_is_that_of_compiling_and_names_the_others(folder: Path) -> None:
    told = " ".join(shoal("compile", "--help", cwd=folder).stdout.split())
    assert "--max-drop" in told
    assert "shoal compile build" not in told
    assert "shoal compile verify" in told


# --- report -------------------------------------------------------------------------------------------------------


def test_report_writes_one_page_on_a_whole_layout_or_on_one_bundle(layout: Path, folder: Path) -> None:
    assert shoal("compile", "report", "out", cwd=folder).stdout == "report.html: 2 bundles\n"
    html = (folder / "report.html").read_text()
    assert "home 1.0.0 for raspberry-pi-4" in html
    assert "home 1.0.0 for x86-64" in html
    target = "models/intents/home/1.0.0/x86-64"
    told = json.loads(shoal("compile", "report", "out", target, "-o", "one.html", "--json", cwd=folder).stdout)
    assert told == {"page": "one.html", "targets": [target], "measured": 0}
    assert "raspberry-pi-4" not in (folder / "one.html").read_text()


def test_a_target_that_is_not_there_is_told_with_those_that_are(layout: Path, folder: Path) -> None:
    done = shoal("compile", "report", "out", "models/a/b/1/c", cwd=folder)
    assert "it lists models/intents/home/1.0.0/raspberry-pi-4" in done.stderr
    assert not (folder / "report.html").exists()


def test_card_and_bom_stand_beside_the_evidence(layout: Path) -> None:
    opened = Layout(layout)
    found = opened.find("models/intents/home/1.0.0/x86-64")
    assert "# home 1.0.0 for x86-64" in str(opened.card(found.digest))
    assert json.loads(opened.bom(found.digest) or b"")["metadata"]["component"]["name"] == "home"


# --- what is shown ------------------------------------------------------------------------------------------------


def test_the_table_fits_a_hundred_columns_and_says_what_is_compile_only() -> None:
    row = {
        "profile": "raspberry-pi-zero-2w",
        "recipe": "litert-int8-dynamic",
        "runtime": "tflite-runtime",
        "precision": "int8",
        "bytes": 999 * 2**20,
        "compile_only": True,
        "cached": True,
        **command.figures(evidence()),
    }
    console = Console(width=100, file=io.StringIO())
    console.print(command._table("intents/home 1.0.0", [row]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    first, second = (line.split() for line in text.splitlines() if "int8" in line)
    assert first == ["raspberry-pi-zero-2w", "litert-int8-dynamic", "999.0", "MiB", "0.9536", "0.24", "pass", "10.20"]
    assert second == ["compile-only,", "cached", "tflite-runtime", "int8", "-0.16", "to", "0.64", "emulated"]


def test_progress_shows_an_estimate_and_notes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=140, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(compiling, "errors", console)

    def lines() -> Iterator[Progress]:
        yield Progress(event="note", message="too few [examples]")
        yield Progress(event="step", message="timing [2]", done=3, total=9, seconds_left=190.0)

    assert follow(lines()) == []  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "too few [examples]" in text
    assert "timing [2]" in text
    assert "about 3 min left" in text


# --- the compiler's end -------------------------------------------------------------------------------------------


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A compiler that does what the shell script says."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr("cli.compiling.sys.executable", str(path))


@pytest.mark.timeout(30)
def test_ctrl_c_ends_the_compiler_and_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accident: Ctrl-C while a candidate is made; here the compiler itself presses it."""
    line = '{"event": "step", "message": "making"}'
    # It reads its job to the end first: before that, its parent may not even know that it has started.
    script = (
        f"trap 'touch {tmp_path}/ended; exit 143' TERM; cat > /dev/null; echo '{line}'; kill -INT $PPID; "
        "while :; do sleep 0.05; done"
    )
    program(tmp_path, monkeypatch, script)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Stopped, match="nothing was written") as told:
            follow(run(["build"], b"{}"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert told.value.exit_code == 130
    assert (tmp_path / "ended").exists()


@pytest.mark.timeout(30)
def test_a_search_that_found_nothing_has_its_own_exit_code_and_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"event": "failed", "error": "Infeasible", "message": "none holds:\n  onnx-fp32 (1.00 MB)"})
    (tmp_path / "line").write_text(line + "\n")
    program(tmp_path, monkeypatch, f"cat {tmp_path}/line; exit 3")
    with pytest.raises(Infeasible, match=r"none holds:\n  onnx-fp32") as told:
        follow(run(["build"], b"{}"))
    assert told.value.exit_code == 3


@pytest.mark.timeout(30)
def test_the_compiler_sees_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_TOKEN", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "asked-for")
    program(tmp_path, monkeypatch, f"env > {tmp_path}/env")
    follow(run(["build"], b"", ["MLFLOW_TRACKING_TOKEN"]))
    seen = (tmp_path / "env").read_text()
    assert "secret" not in seen
    assert "asked-for" in seen
    follow(run(["build"], b""))
    assert "asked-for" not in (tmp_path / "env").read_text()
