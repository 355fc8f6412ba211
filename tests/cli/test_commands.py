from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.compiling import run
from cli.demo.report import faults
from cli.demo.sentences import make_split
from cli.errors import Refused


def shoal(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **env},
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["status", "--data", "nowhere"], "no fleet runs from nowhere: start one with 'shoal up --data nowhere'", 4),
        (["compile", "nothing", "--model", "a/b", "--version", "1", "--test-set", "t", "-o", "o"], "does not exist", 1),
        (["compile", ".", "--model", "ab", "--version", "1", "--test-set", "t", "-o", "o"], "family and name", 1),
        (
            ["compile", ".", "--model", "a/b", "--version", "1", "--test-set", ".", "-o", "o", "--profile", "toaster"],
            "profile 'toaster' is unknown: choose from android-arm64",
            1,
        ),
        (["release", "sign", "."], "oci-layout", 1),
        (["up", "--data", "d", "--https", "8443"], "expected address:port", 1),
        (["up", "--data", "d", "--set", "transfer_rate=8"], "B, KB, MB", 1),
        (["up", "--data", "d", "--set", "nonsense=8"], "there is no such setting", 1),
        (["demo", "--folder", "."], "is not empty", 1),
    ],
)
def test_bad_input_says_what_to_do_and_changes_nothing(
    tmp_path: Path, words: list[str], message: str, code: int
) -> None:
    (tmp_path / "keep").write_text("me")
    done = shoal(*words, cwd=tmp_path)
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("code", [0, 5])
def test_a_compiler_that_says_a_lot_is_heard_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Accident: its libraries write more than a pipe holds while only its progress is read."""
    program = tmp_path / "python"
    line = '{"event": "done", "message": "all"}'
    chatter = "head -c 1000000 /dev/zero >&2; echo >&2; echo last words >&2"
    program.write_text(f"#!/bin/sh\n{chatter}; echo '{line}'; exit {code}\n")
    program.chmod(0o700)
    monkeypatch.setattr("cli.compiling.sys.executable", str(program))
    lines = run(["build"], b"{}")
    assert next(lines).message == "all"
    if code:
        with pytest.raises(Refused, match="ended with 5 before it was done: last words"):
            next(lines)
    else:
        assert list(lines) == []


def test_profiles_are_listed_as_json_and_as_a_table(tmp_path: Path) -> None:
    listed = json.loads(shoal("profile", "list", "--json", cwd=tmp_path).stdout)
    assert {"raspberry-pi-4", "raspberry-pi-zero-2w", "android-arm64", "x86-64"} <= {p["name"] for p in listed}
    assert "Raspberry Pi 4" in shoal("profile", "list", cwd=tmp_path, COLUMNS="200").stdout


def test_help_needs_no_heavy_import(tmp_path: Path) -> None:
    code = "import sys\nsys.argv=['shoal','--help']\nimport cli.main\ntry: cli.main.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'fastapi', 'sqlmodel', 'onnx', 'onnxruntime', 'numpy', 'paho'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=False)
    assert done.returncode == 0, done.stderr


def test_no_template_stands_behind_both_training_and_test_sentences() -> None:
    split = make_split()
    train, test = {text for text, _ in split.train}, {text for text, _ in split.test}
    assert not train & test
    assert {label for _, label in split.test} <= {label for _, label in split.train}
    assert len(split.test) > 600
    assert make_split() == split


def good_results() -> dict[str, object]:
    """What the demo gives when all of it held."""
    profiles = ["a", "b", "c", "d"]
    return {
        "profiles": profiles,
        "variants": [{"profile": p, "accuracy": 0.95, "source_accuracy": 0.955} for p in profiles],
        "devices": [{"status": "online"}] * 4,
        "offline": {"requests": 8, "answered": 8, "produced": 9, "delivered": 9, "lost_requests": 0, "duplicates": 0},
        "killed": {"chunks_at_kill": 3, "chunks": 9, "answered_after_restart": True, "active": "1.1.0"},
        "broken_release": {"devices": 4, "refused": 4, "old_model_answers": 4, "rollout": "aborted"},
        "tampered_release": {"refused": True, "stored": False, "old_model_answers": True},
    }


def test_the_demo_holds_when_everything_did() -> None:
    assert faults(good_results()) == []


@pytest.mark.parametrize(
    ("chapter", "key", "value"),
    [
        ("offline", "answered", 7),
        ("offline", "delivered", 8),
        ("offline", "lost_requests", 1),
        ("offline", "duplicates", 1),
        ("killed", "chunks_at_kill", 0),
        ("killed", "active", "1.0.0"),
        ("killed", "answered_after_restart", False),
        ("broken_release", "refused", 3),
        ("broken_release", "old_model_answers", 3),
        ("broken_release", "rollout", "done"),
        ("tampered_release", "refused", False),
        ("tampered_release", "stored", True),
    ],
)
def test_the_demo_does_not_hold_when_one_thing_did_not(chapter: str, key: str, value: object) -> None:
    results = good_results()
    results[chapter][key] = value  # type: ignore[index]
    assert len(faults(results)) >= 1


def test_a_profile_without_a_variant_is_a_fault() -> None:
    results = good_results()
    del results["variants"][2]  # type: ignore[attr-defined]
    assert faults(results) == ["a profile has no variant"]


def test_a_variant_that_lost_too_much_is_a_fault() -> None:
    results = good_results()
    results["variants"][0]["accuracy"] = 0.90  # type: ignore[index]
    assert faults(results) == ["a variant loses more than one point of accuracy"]
