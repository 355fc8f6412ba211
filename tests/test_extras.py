"""Each extra works alone, in an environment that has nothing else of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_process import FleetProcess, initialise_trust, until

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
    imports = "import agent.main, agent.agent, agent.serving.selftest, sys\n"
    imports += "assert not {'torch', 'onnx', 'fleet'} & set(sys.modules)"
    subprocess.run([venv / "bin" / "python", "-c", imports], check=True, cwd=tmp_path)
    starts_and_joins_a_fleet(venv / "bin" / "shoal-agent", tmp_path)
    help_text = subprocess.run([venv / "bin" / "shoal-agent", "--help"], check=True, capture_output=True, text=True)
    assert "enrol" in help_text.stdout
    operator = subprocess.run([venv / "bin" / "shoal", "status"], check=False, capture_output=True, text=True)
    assert operator.returncode == 1
    assert "the extras fleet and compiler bring" in operator.stderr


def starts_and_joins_a_fleet(agent: Path, folder: Path) -> None:
    """The installed program enrols, answers on its local API, and finds its fleet."""
    with FleetProcess(folder / "fleet") as fleet:
        initialise_trust(fleet)
        kit = folder / "a.kit"
        kit.write_text(json.dumps(fleet.api("POST", "/api/v1/devices", {"device": "a", "profile": "x86-64"})))
        subprocess.run([agent, "enrol", "--kit", kit, "--state", folder / "a"], check=True, cwd=folder)
        running = subprocess.Popen([agent, "run", "--state", folder / "a"], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            until(lambda: fleet.api("GET", "/api/v1/devices/a")["status"] == "online", what="the agent online")
        finally:
            running.terminate()
            assert running.wait(20) == 0
