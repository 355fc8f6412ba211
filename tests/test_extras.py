"""Each extra works alone, in an environment that has nothing else of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_agent_starts_with_nothing_but_its_own_extra(tmp_path: Path) -> None:
    """A clean environment with `shoal[agent]` alone: it has no torch, no onnx, no web framework, and the agent runs."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-P", "-m", "venv", str(venv)], check=True)
    install = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"{ROOT}[agent]"]
    subprocess.run(install, check=True, cwd=tmp_path)
    listed = subprocess.run(
        [venv / "bin" / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert not names & {
        "torch",
        "onnx",
        "transformers",
        "fastapi",
        "starlette",
        "pydantic",
        "sqlmodel",
        "typer",
        "rich",
    }
    imports = (
        "import agent.main, agent.agent, agent.selftest, sys; assert not {'torch','onnx','fleet'} & set(sys.modules)"
    )
    subprocess.run([venv / "bin" / "python", "-c", imports], check=True, cwd=tmp_path)
    help_text = subprocess.run([venv / "bin" / "shoal-agent", "--help"], check=True, capture_output=True, text=True)
    assert "enrol" in help_text.stdout
    operator = subprocess.run([venv / "bin" / "shoal", "status"], check=False, capture_output=True, text=True)
    assert operator.returncode == 1
    assert "pip install 'shoal[fleet,compiler]'" in operator.stderr
