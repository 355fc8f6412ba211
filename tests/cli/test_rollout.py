"""`shoal rollout` against a real fleet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle
from joining import enrol, new_key

from cli.client import Fleet
from cli.errors import Unavailable
from cli.rollout import _seconds, _watched, approve, parse_gates

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """With a release, and a device in each of two groups."""
    with FleetProcess(tmp_path_factory.mktemp("cli") / "fleet") as process:
        initialise_trust(process).release(*tiny_bundle("1.0.0"))
        for name, group in (("north-1", "north"), ("south-1", "south")):
            kit = process.api("POST", "/api/v1/devices", {"device": name, "profile": "x86-64", "group": group})
            assert enrol(process, name, kit["token"], new_key())[0] == 200
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", "rollout", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)

    return run


def test_a_rollout_to_a_group_is_started_shown_and_aborted_twice_alike(shoal: Shoal) -> None:
    started = shoal("start", "intents/kitchen", "1.0.0", "--group", "north", "--waves", "100", "--json")
    assert started.returncode == 0, started.stderr
    rollout = json.loads(started.stdout)
    assert ([d["device"] for d in rollout["devices"]], rollout["group"]) == (["north-1"], "north")
    for words in (("show", rollout["rollout"]), ("list",)):
        table = shoal(*words).stdout
        assert "intents/kitchen 1.0.0" in table
        assert "north" in table
    ended = [shoal("abort", rollout["rollout"], "--reason", "test over", "--json") for _ in range(2)]
    assert ended[0].returncode == ended[1].returncode == 0
    assert json.loads(ended[0].stdout) == json.loads(ended[1].stdout)


def test_a_group_without_devices_is_refused_in_words(shoal: Shoal) -> None:
    result = shoal("start", "intents/kitchen", "1.0.0", "--group", "nowhere")
    assert result.returncode != 0
    assert "no enrolled device of group nowhere" in " ".join(result.stderr.split())


def test_a_plan_shows_who_would_get_it_and_starts_nothing(shoal: Shoal) -> None:
    planned = shoal("plan", "intents/kitchen", "1.0.0", "--to", "device:north-*", "--waves", "1,100%", "--json")
    assert planned.returncode == 0, planned.stderr
    value = json.loads(planned.stdout)
    assert [d["device"] for w in value["waves"] for d in w["devices"]] == ["north-1"]
    table = shoal("plan", "intents/kitchen", "1.0.0", "--window", "01:00-02:00 Europe/Berlin").stdout
    assert all(name in table for name in ("north-1", "south-1", "nothing is sent", "Not before"))
    assert value["plan"] not in shoal("list").stdout


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--to", "group=a and"], "query, character 12: expected a test"),
        (["--gates", "latency=1.2"], "gates.latency"),
        (["--deadline", "soon"], "or a time from now"),
    ],
)
def test_terms_that_cannot_be_read_are_refused_in_words(shoal: Shoal, words: list[str], fault: str) -> None:
    result = shoal("start", "intents/kitchen", "1.0.0", *words)
    assert result.returncode != 0
    assert fault in " ".join(result.stderr.split())


def test_a_rollout_is_paused_resumed_watched_and_aborted(shoal: Shoal) -> None:
    started = shoal("start", "intents/kitchen", "1.0.0", "--to", "device=south-1", "--waves", "100", "--json")
    id_ = json.loads(started.stdout)["rollout"]
    paused = json.loads(shoal("pause", id_, "--reason", "lunch", "--json").stdout)
    assert (paused["state"], paused["reasons"][0][:6]) == ("paused", "paused")
    refused = shoal("retry", id_)
    assert (refused.returncode, "no device has failed" in refused.stderr) == (1, True)
    assert json.loads(shoal("resume", id_, "--json").stdout)["state"] == "running"
    assert shoal("watch", id_, "--until", "wave:1", "--timeout", "9").returncode == 0
    late = shoal("watch", id_, "--timeout", "0.1 s")
    assert (late.returncode, "no answer yet from south-1" in " ".join(late.stderr.split())) == (4, True)
    assert shoal("abort", id_, "--reason", "test over").returncode == 0
    ended = shoal("watch", id_)
    assert (ended.returncode, "ended aborted: test over" in ended.stderr) == (1, True)
    assert shoal("watch", id_, "--until", "aborted").returncode == 0
    assert shoal("rollback", id_, "--reason", "x").returncode == 1
    shown = shoal("show", id_).stdout
    assert all(word in shown for word in ("lunch", "resumed", "test over", "south-1"))


def test_nobody_but_another_person_approves(shoal: Shoal) -> None:
    asked = ("--to", "device=north-1", "--waves", "100", "--approval", "start", "--json")
    id_ = json.loads(shoal("start", "intents/kitchen", "1.0.0", *asked).stdout)["rollout"]
    result = shoal("approve", id_)
    assert (result.returncode, "a program cannot approve" in " ".join(result.stderr.split())) == (1, True)
    assert json.loads(shoal("show", id_, "--json").stdout)["state"] == "awaiting"
    unbegun = shoal("watch", id_, "--until", "wave:1", "--timeout", "0.1 s")
    assert (unbegun.returncode, "still awaiting" in " ".join(unbegun.stderr.split())) == (4, True)
    shoal("abort", id_, "--reason", "test over")


def test_the_wave_that_waits_is_approved_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Awaiting:
        """A fleet whose rollout waits in its second wave."""

        sent: ClassVar[list[tuple[str, object]]] = []

        def get(self, _path: str) -> dict[str, Any]:
            return {"state": "awaiting", "wave": 1}

        def post(self, path: str, body: object) -> dict[str, Any]:
            self.sent.append((path, body))
            raise Unavailable("the answer was lost")

    monkeypatch.setattr(Fleet, "connect", lambda _data=None: Awaiting())
    with pytest.raises(Unavailable):
        approve("r-1")
    assert Awaiting.sent == [("/api/v1/rollouts/r-1/approve", {"wave": 1})]


def test_gates_are_presets_or_limits() -> None:
    assert parse_gates(["install"]) == "install"
    assert parse_gates(["latency=1.2 times", "devices=8"]) == {"latency": "1.2 times", "devices": 8}
    assert parse_gates(["install", "installs=5 %"]) == {"preset": "install", "installs": "5 %"}
    assert _seconds("90") == 90.0
    assert _seconds("2 h") == 7200.0


def test_a_fleet_that_starts_again_does_not_end_a_watch() -> None:
    class Starting:
        """Answers, is away, and answers again."""

        said: ClassVar[list[str | None]] = ["running", None, "done"]

        def get(self, path: str) -> dict[str, Any]:
            state = self.said.pop(0)
            if state is None:
                raise Unavailable(f"{path}: the fleet does not answer")
            return {"state": state}

    assert _watched(cast(Fleet, Starting()), "r-1", 60, lambda value: value["state"] == "done") == {"state": "done"}
