"""A real agent and a real fleet: what is known of a device's life, and what it does when it is told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from agent_process import ON, World
from fleet_process import until

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield World(folder, stack)


def shoal_of(world: World) -> Shoal:
    """`shoal device ...`, where nobody can be asked."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env |= {"SHOAL_DATA": str(world.fleet.data), "XDG_CONFIG_HOME": str(world.folder / "config"), "COLUMNS": "250"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", "device", *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=env, check=False, stdin=subprocess.DEVNULL, cwd=world.folder
        )

    return run


def answer(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_commands_are_done_on_the_device_and_answered_on_the_terminal(world: World) -> None:
    """One device, one model: self-test, log, report, restart, and the end of it, each waited for."""
    world.start_fleet()
    one, agent, shoal = world.bundle("1.0.0"), world.agent("kitchen-1"), shoal_of(world)
    world.roll_out("1.0.0")
    until(lambda: agent.update()["phase"] == "committed")
    assert agent.answers_with(one)

    (test,) = answer(shoal("self-test", "kitchen-1", "--json"))["tests"]
    assert (test["model"], test["digest"], test["fault"]) == ("kitchen", one.digest, "")
    assert "holds" in shoal("self-test", "kitchen-1").stdout

    log = answer(shoal("logs", "kitchen-1", "--json"))["log"]
    assert any("the fleet commands: self-test" in line for line in log)
    assert not any(ON in line for line in log), "a text that was asked about is in the log"

    assert answer(shoal("report", "kitchen-1", "--json"))["state"] == "done"

    boot = agent.status()["boot"]
    assert answer(shoal("restart", "kitchen-1", "--json"))["state"] == "done"
    until(lambda: agent.status().get("boot") not in (None, boot), what="another run of the agent")
    until(lambda: agent.answers_with(one), what="its model")
    until(lambda: (world.device("kitchen-1")["health"] or {}).get("restarts") == {"clean": 1}, what="the restart told")

    done = shoal("reset", "kitchen-1", "--yes", "--json")
    assert answer(done) == {"device": "kitchen-1", "status": "retired"}
    assert agent.ended() == 0
    assert not (agent.state / "identity").exists()
    assert all(c["state"] == "revoked" for c in world.device("kitchen-1")["certificates"])
    late = shoal("report", "kitchen-1")
    assert late.returncode != 0
    assert "only an enrolled device takes commands" in " ".join(late.stderr.split())


@pytest.mark.slow
def test_a_command_to_a_device_that_is_away_is_not_waited_for_for_ever_and_not_done_late(world: World) -> None:
    """Accident: the agent is killed; the command expires; the agent comes back."""
    world.start_fleet(command_lifetime="3 s")
    agent, shoal = world.agent("kitchen-1"), shoal_of(world)
    until(lambda: world.device("kitchen-1")["status"] == "online")
    agent.kill()
    none = shoal("restart", "kitchen-1", "--wait", "0.5")
    assert none.returncode == 4
    assert "no answer within 0.5 s" in " ".join(none.stderr.split())
    path = "/api/v1/devices/kitchen-1/commands"
    until(lambda: world.fleet.api("GET", path)[0]["state"] == "expired", what="the expiry")
    agent.start()
    until(lambda: {e["kind"] for e in world.device("kitchen-1")["events"]} == {"crash"}, what="the crash told")
    boot = agent.status()["boot"]
    assert answer(shoal("report", "kitchen-1", "--json"))["state"] == "done"
    assert agent.status()["boot"] == boot
    states = [(one["action"], one["state"]) for one in world.fleet.api("GET", path)]
    assert states == [("report", "done"), ("restart", "expired")]


@pytest.mark.slow
def test_health_line_and_ledger_of_a_device_are_shown(world: World) -> None:
    world.start_fleet()
    agent, shoal = world.agent("kitchen-1"), shoal_of(world)
    until(lambda: ((world.device("kitchen-1")["health"] or {}).get("line") or {}).get("rtt_ms"), what="a round trip")
    until(lambda: (world.device("kitchen-1")["health"] or {}).get("clock_offset_s") is not None, what="the offset")
    device = answer(shoal("show", "kitchen-1", "--json"))
    assert abs(device["health"]["clock_offset_s"]) < 60
    assert [s["fault"] for s in device["ledger"]] == [""] * len(device["ledger"]) != []
    shown = shoal("show", "kitchen-1").stdout
    for word in ("Round trip ms", "Restarts", "Clock ahead s", "Ledger", "balances", "Events", "Throttled"):
        assert word in shown
    assert agent.status()["restarts"] == {}


@pytest.mark.slow
def test_a_broker_that_is_killed_under_load_loses_nothing_that_was_acknowledged(world: World) -> None:
    """Accident: SIGKILL of the broker, five times, while two devices send as fast as they can."""
    world.start_fleet()
    fast = {"SHOAL_AGENT_WINDOW": "100 ms", "SHOAL_AGENT_ACK_TIMEOUT": "500 ms"}
    agents = [world.agent(f"kitchen-{n}", **fast) for n in (1, 2)]
    for _ in range(5):
        broker = world.fleet.api("GET", "/api/v1/status")["broker"]["pid"]
        delivered = [agent.status()["telemetry"]["delivered"] for agent in agents]
        os.kill(broker, signal.SIGKILL)
        until(lambda b=broker: world.fleet.api("GET", "/api/v1/status")["broker"]["pid"] not in (None, b))
        until(
            lambda d=delivered: all(
                agent.status()["telemetry"]["delivered"] > n + 5 for agent, n in zip(agents, d, strict=True)
            ),
            what="telemetry again",
            within=60,
        )
    for agent in agents:
        assert agent.stop() == 0
        with closing(sqlite3.connect(agent.state / "agent.db")) as file:
            waiting = {row[0] for row in file.execute("SELECT boot || seq FROM telemetry")}
            counts = file.execute("SELECT SUM(produced), SUM(delivered), SUM(merged), SUM(dropped) FROM ledger")
            produced, delivered, merged, dropped = counts.fetchone()
        with closing(sqlite3.connect(world.fleet.data / "fleet.db")) as file:
            rows = file.execute("SELECT boot || seq FROM telemetry WHERE device = ?", (agent.state.name,)).fetchall()
        stored = [row[0] for row in rows]
        assert (merged, dropped) == (0, 0)
        assert produced == delivered + len(waiting)
        assert len(stored) == len(set(stored))
        assert len(set(stored) - waiting) == delivered, "what was acknowledged and what is stored are not the same"
        assert all(not s["fault"] for s in world.device(agent.state.name)["ledger"])
