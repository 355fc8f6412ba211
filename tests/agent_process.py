"""Real agent processes beside a real fleet: `World` starts them and ends them.

world.start_fleet()
agent = world.agent("kitchen-1")
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fleet_process import FleetProcess, Publisher, initialise_trust, until
from tiny_bundle import TinyBundle, make_layout

ON = "turn the light on"
FAST = {
    "SHOAL_AGENT_WINDOW": "300 ms",
    "SHOAL_AGENT_ACK_TIMEOUT": "1 s",
    "SHOAL_AGENT_FETCH_TIMEOUT": "300 ms",
    "SHOAL_AGENT_PROBATION_TIME": "300 ms",
}


class AgentProcess:
    """`python -m agent.main run` on a state folder. Its log is `<state>.log`."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.state = state
        self.environment = {**FAST, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            [sys.executable, "-P", "-m", "agent.main", *words, "--state", str(self.state)],
            capture_output=True,
            text=True,
            check=False,
            cwd=_repository(),
            env=environment,
        )

    def enrol(self, kit: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        path = self.state.parent / f"{self.state.name}-kit.json"
        path.write_text(json.dumps(kit))
        return self.command("enrol", "--kit", str(path))

    def start(self) -> None:
        with Path(f"{self.state}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.main", "run", "--state", str(self.state)],
                stderr=log,
                cwd=_repository(),
                env={**os.environ, **self.environment},
            )
        until(lambda: self.get("/v2/health/live")[0] == 200, what=f"the agent in {self.state}")

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def ended(self) -> int:
        """Wait until it ends by itself, and give back its exit code."""
        assert self._process is not None
        return self._process.wait(20)

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, value: object = None) -> tuple[int, Any]:
        """Status 0 while nothing answers."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.state / "agent.sock"))
            connection.request(method, path, None if value is None else json.dumps(value))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()

    def infer(self, text: str = ON) -> tuple[int, Any]:
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
        return self.ask("POST", "/v2/models/kitchen/infer", body)

    def answers_with(self, bundle: TinyBundle) -> bool:
        status, value = self.infer()
        return status == 200 and value["model_version"] == bundle.digest and value["outputs"][0]["data"] == ["light-on"]

    def status(self) -> Any:
        status, value = self.get("/shoal/status")
        return value if status == 200 else {}

    def update(self) -> Any:
        return next(iter(self.status().get("updates", [])), {"phase": "", "reason": ""})

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def tcp_address(self) -> str:
        """Where it answers over TCP: the port was chosen at its start, and its log names it."""
        return re.findall(r"answering on \S+ and (\S+)", self.log)[-1]

    def token(self) -> str:
        told = self.command("token")
        assert told.returncode == 0, told.stderr
        return told.stdout.strip()

    @property
    def log(self) -> str:
        return Path(f"{self.state}.log").read_text()


class World:
    """One fleet with its publisher and as many agents as a test needs; everything started here is ended."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.fleet: FleetProcess
        self.publisher: Publisher

    def start_fleet(self, **settings: object) -> None:
        self.fleet = self.stack.enter_context(FleetProcess(self.folder / "fleet", gather="50 ms", **settings))
        self.publisher = initialise_trust(self.fleet)

    def bundle(self, version: str, **options: Any) -> TinyBundle:
        layout = self.folder / f"layout-{version}"
        made = make_layout(layout, version=version, **options)
        self.publisher.release_layout(layout)
        return made

    def enrolled(self, device: str, **environment: str) -> AgentProcess:
        """An agent that has joined and does not run yet."""
        agent = AgentProcess(self.folder / device, **environment)
        kit = self.fleet.api("POST", "/api/v1/devices", {"device": device, "profile": "x86-64"})
        enrolled = agent.enrol(kit)
        assert enrolled.returncode == 0, enrolled.stderr
        self.stack.callback(agent.stop)
        return agent

    def agent(self, device: str, **environment: str) -> AgentProcess:
        agent = self.enrolled(device, **environment)
        agent.start()
        return agent

    def roll_out(self, version: str) -> None:
        """As soon as the rollout before it has ended: a device is through before the fleet has heard it."""
        until(lambda: not any(r["state"] == "running" for r in self.rollouts()), what="the end of a rollout", within=60)
        body = {"family": "intents", "name": "kitchen", "version": version, "waves": [100], "gates": "install"}
        self.fleet.api("POST", "/api/v1/rollouts", body)

    def rollouts(self) -> Any:
        return self.fleet.api("GET", "/api/v1/rollouts")

    def device(self, device: str) -> Any:
        return self.fleet.api("GET", f"/api/v1/devices/{device}")


def _repository() -> Path:
    return Path(__file__).resolve().parent.parent
