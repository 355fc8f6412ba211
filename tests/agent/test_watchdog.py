"""The watchdog: a supervisor that does what systemd does, and real agent processes that hang, are killed, and stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from agent.errors import Unavailable
from agent.identity.identity import FOLDER, Joined
from agent.identity.keys import key_pem, new_key
from agent.life import restarts
from agent.life.pulse import Notifier, Pulse
from agent.life.restarts import LastWords, cause_of, place
from agent.main import NOT_ENROLLED
from agent.store.state import StateFile
from wire.messages import TelemetryRecord
from wire.profile import Profile

UNIT = Path(__file__).parents[2] / "firmware-profiles/systemd/shoal-agent.service"
PROFILE = Profile.from_toml((Path(__file__).parents[2] / "firmware-profiles/x86-64.toml").read_bytes())
HANGS = (
    "import asyncio, signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))\n"
    "from agent.agent import Agent; from agent.main import main; run = Agent.run\n"
    "def runs(agent, stop):\n"
    "    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, agent._restart.set)\n"
    "    return run(agent, stop)\n"
    "Agent.run = runs; sys.exit(main(sys.argv[1:]))"
)
"""The agent, whose loop stands still from SIGUSR1 on: the handler runs on the loop's thread. SIGUSR2: the command to
restart."""
WATCHDOG = 2.0
"""Seconds."""


class Supervisor:
    """Type=notify, WatchdogSec=2, Restart=always: what systemd does with a service, for one process at a time."""

    def __init__(self, folder: Path, state: Path) -> None:
        self._path = folder / "notify"
        self._state = state
        self._log = (folder / "log").open("ab")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self.process: subprocess.Popen[bytes] | None = None
        self.heard: list[str] = []
        self.killed_by_watchdog = 0

    def start(self) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")},
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": str(int(WATCHDOG * 1_000_000)),
        }
        command = [sys.executable, "-P", "-c", HANGS, "run", "--state", str(self._state)]
        self.heard.clear()
        self.process = subprocess.Popen(command, env=environment, stderr=self._log)

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Serve until a process says these words; who says nothing in the watchdog's time is killed and replaced."""
        deadline = time.monotonic() + seconds
        ready = "WATCHDOG=1" in self.heard and "RELOADING=1" not in self.heard
        self.heard.clear()
        while words not in self.heard:
            assert time.monotonic() < deadline, (words, self.heard, Path(self._log.name).read_text()[-2000:])
            self._socket.settimeout(WATCHDOG if ready else 1.0)
            try:
                said = self._socket.recv(4096).decode()
            except TimeoutError:
                if ready:
                    self._restart()
                    ready = False
                continue
            ready = ready or said == "READY=1"
            self.heard += said.splitlines()

    def _restart(self) -> None:
        assert self.process is not None
        self.killed_by_watchdog += 1
        self.process.send_signal(signal.SIGABRT)
        self.process.wait(10)
        self.start()

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._socket.close()
        self._log.close()


@pytest.fixture
def state(short_folder: Path, authority, sim) -> Path:
    """A device as enrolment leaves it, whose broker is not there."""
    folder = short_folder / "state"
    identity = folder / FOLDER
    identity.mkdir(parents=True)
    key = new_key()
    certificate = authority.issue("kitchen-1", key.public_key())
    joined = Joined(device="kitchen-1", fleet="https://localhost:1", broker="localhost:1", profile=PROFILE)
    files = {
        "key.pem": key_pem(key),
        "cert.pem": certificate.public_bytes(Encoding.PEM),
        "ca.pem": authority.pem.encode(),
        "sealing.pem": key_pem(new_key()),
        "device.json": joined.to_bytes(),
    }
    for name, data in files.items():
        (identity / name).write_bytes(data)
    with closing(StateFile.open(folder / "agent.db")) as file:
        file.save_trust({"root": sim.repo.roots[1]})
    return folder


@pytest.fixture
def supervisor(short_folder: Path, state: Path) -> Iterator[Supervisor]:
    one = Supervisor(short_folder, state)
    yield one
    one.close()


def told(state: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Restarts by cause, and the events that wait to be sent, by kind."""
    with closing(StateFile.open(state / "agent.db")) as file:
        records = [TelemetryRecord.from_bytes(row[0]) for row in file._rows("SELECT record FROM telemetry ORDER BY id")]
        counts = json.loads(file.recall("run"))["counts"]
    return counts, {event.kind: event.text for record in records for event in record.events}


def test_an_agent_that_hangs_is_restarted_and_says_so_and_where_it_hung(supervisor: Supervisor, state: Path) -> None:
    """Accident: the loop stands still for ten minutes. The process is alive, and its socket still open."""
    supervisor.start()
    supervisor.until("READY=1")
    supervisor.until("WATCHDOG=1")
    first = supervisor.process
    assert first is not None
    first.send_signal(signal.SIGUSR1)
    supervisor.until("READY=1")
    assert supervisor.killed_by_watchdog == 1
    assert first.returncode == -signal.SIGABRT
    supervisor.until("WATCHDOG=1")
    assert supervisor.end(signal.SIGTERM) == 0
    counts, events = told(state)
    assert counts == {"watchdog": 1}
    assert events["watchdog"].startswith("the agent hung and was restarted by the watchdog (it stood in ")


def test_an_agent_that_is_killed_says_so_at_the_next_start_and_one_that_is_stopped_does_not(
    supervisor: Supervisor, state: Path
) -> None:
    """Accident: SIGKILL, as the kernel sends it to a process that takes too much memory."""
    supervisor.start()
    supervisor.until("WATCHDOG=1")
    assert supervisor.end(signal.SIGKILL) == -signal.SIGKILL
    for _ in range(2):
        supervisor.start()
        supervisor.until("WATCHDOG=1")
        assert supervisor.end(signal.SIGTERM) == 0
        supervisor.until("STOPPING=1")
    counts, events = told(state)
    assert counts == {"crash": 1, "clean": 1}
    assert list(events) == ["crash"]
    assert supervisor.killed_by_watchdog == 0


def test_an_agent_that_restarts_on_command_is_reloading_and_not_killed_as_one_that_does_not_stop(
    supervisor: Supervisor, state: Path
) -> None:
    supervisor.start()
    supervisor.until("WATCHDOG=1")
    process = supervisor.process
    assert process is not None
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    process.send_signal(signal.SIGUSR2)
    supervisor.until("RELOADING=1")
    at, longer = supervisor.heard[supervisor.heard.index("RELOADING=1") + 1 :][:2]
    assert int(at.removeprefix("MONOTONIC_USEC=")) >= before * 1e6 - 1
    assert longer == "WATCHDOG_USEC=600000000"
    supervisor.until("READY=1")
    assert "STOPPING=1" not in supervisor.heard
    supervisor.until(f"WATCHDOG_USEC={int(WATCHDOG * 1e6)}")
    supervisor.until("WATCHDOG=1")
    assert process.poll() is None
    assert supervisor.end(signal.SIGTERM) == 0
    supervisor.until("STOPPING=1")
    counts, events = told(state)
    assert (counts, list(events), supervisor.killed_by_watchdog) == ({"clean": 1}, [], 0)


def test_no_sign_of_life_is_given_while_the_database_does_not_answer(short_folder: Path) -> None:
    """Accident: the memory card is gone, and every read ends with an error."""
    path = short_folder / "notify"
    state = StateFile.open(short_folder / "agent.db")
    words = LastWords(short_folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.setblocking(False)
        pulse = Pulse(Notifier(str(path), 60.0), state, words)
        pulse.beat(60.0)
        assert heard.recv(100) == b"WATCHDOG=1"
        state.close()
        with pytest.raises(Unavailable):
            state.recall("run")
        pulse.beat(60.0)
        with pytest.raises(BlockingIOError):
            heard.recv(100)
    words.close()


def test_a_notifier_reads_what_systemd_sets_and_nothing_that_is_for_another_process() -> None:
    all_set = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}
    assert Notifier.of(all_set, pid=7) == Notifier("/run/notify", 30.0)
    assert Notifier.of(all_set, pid=8) == Notifier("/run/notify", None)
    assert Notifier.of({}) == Notifier.of({"WATCHDOG_USEC": "soon"}) == Notifier("", None)
    Notifier().tell("READY=1")
    Notifier("/nobody/listens").tell("READY=1")


def test_an_abstract_socket_is_spoken_to(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + short_folder.name)
        heard.settimeout(5)
        Notifier("@" + short_folder.name).tell("READY=1")
        assert heard.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("marked", "kernel", "words", "cause"),
    [
        ("", "k1", "", "first"),
        ("clean", "k2", "", "clean"),
        ("k1", "k1", "", "crash"),
        ("k1", "k1", "Fatal Python error: Segmentation fault\n", "crash"),
        ("k1", "k1", "Timeout (0:00:48)!\nThread 0x1", "watchdog"),
        ("k1", "k2", "", "power"),
        ("k1", "k2", "Timeout (0:00:48)!", "power"),
    ],
)
def test_what_ended_the_last_run(marked: str, kernel: str, words: str, cause: str) -> None:
    assert cause_of(marked, kernel, words) == cause


def test_the_place_of_a_hang_is_that_of_the_main_thread() -> None:
    words = (
        'Timeout (0:00:01)!\nThread 0x01 (most recent call first):\n  File "/usr/lib/threading.py", line 5 in wait\n'
        'Thread 0x02 (most recent call first):\n  File "/opt/shoal/agent/store/queue.py", line 97 in add\n'
    )
    assert place(words) == "store/queue.py:97 add"
    assert place("nothing of the kind") == ""


def test_a_power_cut_is_known_by_another_kernel_and_counted(tmp_path: Path) -> None:
    kernel = tmp_path / "boot_id"
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        causes = []
        for boot in ("k1", "k2", "k3"):
            kernel.write_text(boot)
            causes.append(restarts.begin(state, "", kernel))
        restarts.end(state)
        causes.append(restarts.begin(state, "", kernel))
    assert [run.cause for run in causes] == ["first", "power", "power", "clean"]
    assert causes[-1].counts == {"power": 2, "clean": 1}
    assert "power cut" in causes[1].alarm
    assert causes[0].alarm == causes[-1].alarm == ""


@pytest.mark.parametrize(
    "damage", ["{", "7", "{}", '{"marked": "k1", "counts": 7}', '{"marked": "k1", "counts": {"crash": "x"}}', "null"]
)
def test_a_damaged_note_of_the_last_run_keeps_no_agent_from_starting_or_ending(tmp_path: Path, damage: str) -> None:
    """Accident: the card changed a byte of it."""
    kernel = tmp_path / "boot_id"
    kernel.write_text("k1")
    with closing(StateFile.open(tmp_path / "agent.db")) as state:
        state.remember("run", damage)
        assert restarts.begin(state, "", kernel).cause == "first"
        state.remember("run", damage)
        restarts.end(state)
        run = restarts.begin(state, "", kernel)
        assert (run.cause, run.counts) == ("clean", {"clean": 1})


def test_a_device_that_is_not_enrolled_is_not_started_again_and_again() -> None:
    """Accident: the fleet wiped it, and the unit would start it every two seconds for ever."""
    lines = UNIT.read_text().splitlines()
    assert {"Restart=always", f"RestartPreventExitStatus={NOT_ENROLLED}"} <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit_that_is_shipped(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/shoal/bin/shoal-agent", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
