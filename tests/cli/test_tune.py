"""`shoal tune`: the command, from a labelled file to a report."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from compiler_process import make_encoder, rows, write_rows


def shoal(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SHOAL_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **env},
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "--train", "keep", "-o", "o"], "this encoder does not exist"),
        ([".", "--train", "nothing", "-o", "o"], "does not exist"),
        ([".", "--train", "keep", "-o", "o", "--validation", "keep", "--split", "0.2"], "give one of them"),
        ([".", "--train", "keep", "-o", "o", "--split", "0.9"], "expected a share of the rows from 0 to 0.5"),
        ([".", "--train", "keep", "-o", "o"], "no model.safetensors"),
    ],
)
def test_bad_input_says_what_to_do_and_changes_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "keep").write_text("me")
    done = shoal("tune", *words, cwd=tmp_path)
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]


@pytest.mark.slow
def test_a_server_that_is_away_does_not_lose_the_training(tmp_path: Path) -> None:
    """Accident: MLflow is configured, and nobody listens there."""
    make_encoder(tmp_path / "encoder")
    write_rows(tmp_path / "train.jsonl", rows(0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        words = ["encoder", "--train", "train.jsonl", "-o", "made", "--json"]
        done = shoal("tune", *words, cwd=tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode == 0, done.stderr
    assert "not logged, the model is there: mlflow at http://127.0.0.1" in done.stderr.replace("\n", " ")
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "made.report.json").read_text())
    assert report["validation_rows"] > 0
    assert {label["label"] for label in report["classes"]} == {"heat", "light", "lock", "tune"}
    assert (tmp_path / "made" / "training.json").is_file()
