"""The demo's world: a fleet and its devices as separate processes in one folder, and doors to talk to them.

Everything that is started here is ended here, by the process that was started, whatever happens.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from cli.client import Fleet
from cli.device_views import device_table
from cli.errors import Refused, Unavailable
from cli.model import model_table
from cli.output import console

_PATIENCE_S = 90.0

T = TypeVar("T")


def wait_for(what: str, check: Callable[[], T | None], timeout_s: float = _PATIENCE_S) -> T:
    """The first result of `check` that is not None or False. Raises `Unavailable` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(Unavailable):
            if found := check():
                return found
        if time.monotonic() > deadline:
            raise Unavailable(
                f"demo: waited {timeout_s:.0f} s for {what}; the logs are in the demo's folder (--folder keeps it)"
            )
        time.sleep(0.05)


@dataclass
class World:
    """One folder with everything in it: fleet data, trust folder, device states, logs."""

    folder: Path
    cache: Path
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _chapters: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in reversed(self._children):
            end(child)

    @property
    def data(self) -> Path:
        """The fleet's data folder."""
        return self.folder / "fleet"

    def chapter(self, title: str) -> None:
        """Say what comes next."""
        self._chapters += 1
        console.print(f"\n[bold]{self._chapters}. {title}[/]", highlight=False)

    def say(self, text: str) -> None:
        """Narrate."""
        for path, short in ((self.folder, "."), (self.cache, "$CACHE"), (sys.prefix, "$VENV")):
            text = text.replace(str(path), short)
        console.print(text, highlight=False, soft_wrap=True)

    def show_tables(self) -> None:
        """The tables that an operator would look at."""
        fleet = self.fleet()
        for command, view in (
            ("device list", device_table(fleet.devices())),
            ("model list", model_table(fleet.get("/api/v1/models"))),
        ):
            self.say(f"[dim]$ shoal {command}[/]")
            console.print(view)

    def fleet(self) -> Fleet:
        """The fleet's HTTP interface."""
        return Fleet.connect(self.data)

    def shoal(self, *words: str) -> Any:
        """Run a command of `shoal` as a person would, and give its JSON. Raises `Refused` with what it said."""
        self.say(f"[dim]$ shoal {shlex.join(words)}[/]")
        slow = words[0] in ("tune", "compile")
        return self._run([sys.executable, "-P", "-m", "cli", *words, "--json"], show_progress=slow)

    def compiler(self, *words: str) -> None:
        """Run the compiler's own command line."""
        self.say(f"[dim]$ python -m compiler {shlex.join(words)}[/]")
        self._run([sys.executable, "-P", "-m", "compiler", *words], parse=False)

    def agent_command(self, *words: str) -> None:
        """Run a command of `shoal-agent` to its end."""
        self.say(f"[dim]$ shoal-agent {shlex.join(words)}[/]")
        self._run([sys.executable, "-P", "-m", "agent", *words], parse=False)

    def start(self, name: str, command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to `<name>.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=self.folder,
            )
        self._children.append(child)
        return child

    def _run(self, command: list[str], *, parse: bool = True, show_progress: bool = False) -> Any:
        """Run a command to its end; its progress, on standard error, is shown or kept for the reason of a failure."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show_progress else subprocess.PIPE,
            env={**os.environ, "SHOAL_DATA": str(self.data)},
            cwd=self.folder,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr or b"it said why above").decode().strip()[-2000:]
            raise Refused(f"{shlex.join(command[3:])}: {reason}")
        return json.loads(done.stdout) if parse else None


@dataclass
class FleetProcess:
    """`shoal up`, on ports that stay the same over a restart, as devices remember them."""

    world: World
    settings: dict[str, str]
    ports: tuple[int, int]
    child: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start it and wait until it answers."""
        https, broker = self.ports
        options = [word for name, value in self.settings.items() for word in ("--set", f"{name}={value}")]
        addresses = ["--https", f"127.0.0.1:{https}", "--broker", f"127.0.0.1:{broker}"]
        words = ["up", "--data", str(self.world.data), *addresses, *options]
        self.world.say(f"[dim]$ shoal {shlex.join(words)}[/]")
        self.child = self.world.start("fleet", [sys.executable, "-P", "-m", "cli", *words])
        wait_for("the fleet to answer", self._answers)

    def stop(self) -> None:
        """Ctrl-C, and wait until it and its broker are gone. Raises `Refused` when it did not end cleanly."""
        assert self.child is not None
        self.child.send_signal(signal.SIGINT)
        if code := self.child.wait(timeout=30):
            raise Refused(f"shoal up ended with {code} after Ctrl-C")

    def _answers(self) -> bool:
        if self.child is not None and self.child.poll() is not None:
            log = (self.world.folder / "fleet.log").read_text()[-2000:]
            raise Refused(f"shoal up ended with {self.child.returncode}: {log}")
        return bool(self.world.fleet().get("/api/v1/status")["broker"]["state"] == "running")


@dataclass
class Device:
    """One agent process with its state folder and its local API."""

    world: World
    name: str
    profile: str
    child: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        """The agent's state folder."""
        return self.world.folder / self.name

    @property
    def socket(self) -> Path:
        """The Unix socket of its local API; in the demo's folder, because such paths must be short."""
        return self.world.folder / f"{self.name}.sock"

    def enrol(self) -> None:
        """Make a kit and join with it."""
        kit = self.world.folder / f"{self.name}.kit"
        self.world.shoal("device", "kit", self.name, "--profile", self.profile, "--output", str(kit))
        self.world.agent_command("enrol", "--kit", str(kit), "--state", str(self.state))

    def start(self, *, with_model: bool = False) -> None:
        """Start the agent and wait for its local API, or until its model is loaded."""
        words = ["run", "--state", str(self.state), "--socket", str(self.socket)]
        env = {"SHOAL_AGENT_WINDOW": "1 s", "SHOAL_AGENT_PROBATION_TIME": "2 s"}
        self.child = self.world.start(self.name, [sys.executable, "-P", "-m", "agent", *words], env)
        path = "/v2/health/ready" if with_model else "/v2/health/live"
        wait_for(f"{self.name} to answer", lambda: self.call("GET", path)[0] == http.client.OK)

    def kill(self) -> None:
        """SIGKILL: no goodbye, nothing flushed."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def status(self) -> dict[str, Any]:
        """What the agent says of itself on its local API."""
        return dict(self.call("GET", "/shoal/status")[1])

    def ask(self, model: str, texts: list[str]) -> dict[str, Any]:
        """Ask for the labels of some texts by Open Inference Protocol v2. Raises `Refused` on any other answer."""
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        status, body = self.call("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
        if status != http.client.OK:
            raise Refused(f"{self.name}: answered {status}: {body}")
        outputs = {o["name"]: o["data"] for o in body["outputs"]}
        return {
            "id": body["id"],
            "digest": body["model_version"],
            "labels": outputs["label"],
            "scores": outputs["score"],
        }

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request to the local API: status and JSON. Raises `Unavailable` when nobody answers."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"{self.name}: its local API does not answer: {e}") from e
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def end(child: subprocess.Popen[bytes]) -> None:
    """Stop a process that may be gone: politely, then not."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_ports(count: int) -> tuple[int, ...]:
    """TCP ports on loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return tuple(s.getsockname()[1] for s in sockets)


@contextlib.contextmanager
def folder_for(wanted: Path | None) -> Iterator[Path]:
    """The folder asked for, kept; or a temporary one, removed in the end."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted.resolve()
        return

    folder = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
