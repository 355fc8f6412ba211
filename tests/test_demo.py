"""The demo as a newcomer runs it: real model, broker, TLS, processes and signatures; all of it must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.demo.report import faults


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_holds_and_writes_what_it_saw(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "cli", "demo", "--json", str(tmp_path / "demo.json")]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "All of it held." in done.stdout
    results = json.loads((tmp_path / "demo.json").read_text())
    assert faults(results) == []
    wanted = {"profile", "runtime", "precision", "bytes", "accuracy", "source_accuracy", "p50_ms", "evidence"}
    assert all(wanted <= set(variant) for variant in results["variants"])
    runtimes = {v["profile"]: v["runtime"] for v in results["variants"]}
    assert set(runtimes.values()) <= {"onnxruntime", "litert"}, (
        "which of the two is faster there is the search's to find"
    )
    assert find_spec("litert_torch") is None or runtimes["android-arm64"] == "litert"
    assert {"requests", "answered", "produced", "delivered", "duplicates"} <= set(results["offline"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "demo.json"]
