"""`shoal device` against a real fleet."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust
from joining import Batch, Holder, enrol, new_key

from wire.kit import EnrolmentKit

Shoal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("cli") / "fleet") as process:
        initialise_trust(process)
        yield process


@pytest.fixture
def shoal(fleet: FleetProcess, tmp_path: Path) -> Shoal:
    """The command, where nobody can be asked, on this fleet's data folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    env = {**clean, "SHOAL_DATA": str(fleet.data), "XDG_CONFIG_HOME": str(tmp_path / "config"), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "cli", "device", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False, stdin=subprocess.DEVNULL
        )

    return run


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    said = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "Traceback" not in said
    for word in words:
        assert word in said


def shown(shoal: Shoal, device: str) -> Any:
    return json.loads(done(shoal("show", device, "--json")))


def test_a_kit_of_one_device_lets_it_in(fleet: FleetProcess, shoal: Shoal, tmp_path: Path) -> None:
    assert "shoal-agent enrol --kit cli-one.kit" in done(
        shoal("kit", "cli-one", "--profile", "x86-64", "--group", "kitchens")
    )
    path = tmp_path / "cli-one.kit"
    assert path.stat().st_mode & 0o777 == 0o600
    kit = EnrolmentKit.from_bytes(path.read_bytes())
    assert enrol(fleet, "cli-one", kit.token or "", new_key())[0] == 200
    table = done(shoal("list", "--group", "kitchens"))
    assert "cli-one" in table
    assert "kitchens" in table
    details = done(shoal("show", "cli-one"))
    assert "current" in details
    assert "(in 365 d)" in details
    refused(shoal("kit", "cli-one", "--profile", "x86-64"), "cli-one.kit: exists already")
    refused(shoal("kit", "cli-one", "--profile", "x86-64", "-o", "other.kit"), "this id is taken")
    assert not (tmp_path / "other.kit").exists()


def test_a_batch_from_its_kit_to_its_end(fleet: FleetProcess, shoal: Shoal, tmp_path: Path) -> None:
    said = done(shoal("kit", "--batch", "cli-batch", "--quota", "3", "--profile", "x86-64", "--days", "2"))
    assert "for up to 3 devices" in said
    kit = EnrolmentKit.from_bytes((tmp_path / "cli-batch.kit").read_bytes())
    batch, key = Batch.of(fleet, tmp_path, kit), new_key()
    for name in ("cli-b1", "cli-b2"):
        assert batch.ask(name, key)[0] == 202
    waiting = json.loads(done(shoal("list", "--pending", "--json")))
    assert [d["device"] for d in waiting] == ["cli-b1", "cli-b2"]
    listed = done(shoal("list"))
    assert "pending of batch cli-batch" in listed
    assert "Batches" in listed

    done(shoal("accept", "cli-b1", "--group", "bakeries"))
    assert batch.ask("cli-b1", key)[0] == 200
    assert shown(shoal, "cli-b1")["group"] == "bakeries"
    done(shoal("reject", "cli-b2", "--reason", "unknown"))
    assert batch.ask("cli-b2", key)[0] == 403
    refused(shoal("accept", "cli-nobody"), "there is none of that id")

    refused(shoal("revoke", "--batch", "cli-batch"), "--yes")
    assert batch.ask("cli-b3", key)[0] == 202
    done(shoal("revoke", "--batch", "cli-batch", "--yes"))
    assert batch.ask("cli-b3", key)[0] == 403
    assert "revoked" in done(shoal("list"))


def test_putting_a_device_out_takes_a_yes_and_a_reason(fleet: FleetProcess, shoal: Shoal, tmp_path: Path) -> None:
    device = Holder.enrolled(fleet, tmp_path, "cli-out")
    refused(shoal("revoke", "cli-out", "--yes"), "say why with --reason")
    refused(shoal("revoke", "cli-out", "--reason", "stolen"), "Nobody can be asked", "--yes")
    assert shown(shoal, "cli-out")["status"] == "unknown"
    assert "cli-out: revoked" in done(shoal("revoke", "cli-out", "--reason", "stolen", "--yes"))
    assert device.seen() == 403
    assert "stolen" in done(shoal("show", "cli-out"))


def test_a_device_is_retired(fleet: FleetProcess, shoal: Shoal, tmp_path: Path) -> None:
    Holder.enrolled(fleet, tmp_path, "cli-leaves")
    refused(shoal("retire", "cli-leaves"), "--yes")
    assert "it wipes itself as soon as it is there" in done(shoal("retire", "cli-leaves", "--yes"))
    assert done(shoal("retire", "cli-leaves", "--now", "--yes")) == "cli-leaves: retired\n"
    assert shown(shoal, "cli-leaves")["status"] == "retired"


def test_on_a_terminal_a_no_changes_nothing(fleet: FleetProcess, shoal: Shoal, tmp_path: Path) -> None:
    Holder.enrolled(fleet, tmp_path, "cli-asked")
    master, slave = pty.openpty()
    try:
        os.write(master, b"n\n")
        env = {**os.environ, "SHOAL_DATA": str(fleet.data)}
        command = [sys.executable, "-P", "-m", "cli", "device", "revoke", "cli-asked", "--reason", "r"]
        answer = subprocess.run(command, stdin=slave, capture_output=True, text=True, env=env, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert answer.returncode != 0
    assert "Revoke cli-asked?" in answer.stderr
    assert shown(shoal, "cli-asked")["status"] == "unknown"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kit", "--profile", "x86-64"], "name either a device, or a batch"),
        (["kit", "a", "--batch", "b", "--quota", "1", "--profile", "x86-64"], "name either a device, or a batch"),
        (["kit", "a", "--quota", "1", "--profile", "x86-64"], "are of a batch"),
        (["kit", "--batch", "b", "--profile", "x86-64"], "say with --quota"),
        (["kit", "cli-new", "--profile", "abacus"], "none of that name"),
        (["kit", "Cli", "--profile", "x86-64"], "device"),
        (["revoke"], "name either a device, or a batch"),
        (["revoke", "a", "--batch", "b"], "name either a device, or a batch"),
        (["show", "../../etc"], "device: expected"),
    ],
)
def test_a_command_that_cannot_be_says_so_and_leaves_no_file(
    shoal: Shoal, tmp_path: Path, words: list[str], message: str
) -> None:
    refused(shoal(*words), message)
    assert list(tmp_path.iterdir()) == []


def test_devices_are_tagged_noted_listed_by_query_and_moved_by_a_file(shoal: Shoal, tmp_path: Path) -> None:
    done(shoal("kit", "lab-1", "--profile", "x86-64", "-o", "lab-1.kit"))
    assert "kitchen" in done(shoal("tag", "lab-1", "+kitchen", "+old"))
    assert json.loads(done(shoal("tag", "lab-1", "-old", "--json")))["tags"] == ["kitchen"]
    refused(shoal("tag", "lab-1", "kitchen"), "write +kitchen")
    done(shoal("note", "lab-1", "by the [red]window"))
    done(shoal("group", "lab-1", "lab-files"))
    listed = json.loads(done(shoal("list", "--where", "tag:kitchen and group:lab-files", "--json")))
    assert [d["device"] for d in listed] == ["lab-1"]
    assert "by the [red]window" in done(shoal("show", "lab-1"))
    told = done(shoal("history", "lab-1"))
    assert "default -> lab-files" in told
    assert "nothing -> kitchen old" in told
    text = done(shoal("export", "--where", "group:lab-files"))
    (tmp_path / "devices.csv").write_text(text.replace("kitchen", "cellar") + "lab-2,x86-64,lab-files,,new\r\n")
    assert "1 would be new, 1 would be changed" in done(shoal("import", "devices.csv", "--dry-run"))
    assert "1 kits in" in done(shoal("import", "devices.csv"))
    assert (tmp_path / "lab-2.kit").stat().st_mode & 0o777 == 0o600
    EnrolmentKit.from_bytes((tmp_path / "lab-2.kit").read_bytes())
    assert shown(shoal, "lab-1")["tags"] == ["cellar"]
    (tmp_path / "devices.csv").write_text(text + "lab-3,x86-64\r\n")
    refused(shoal("import", "devices.csv"), "line 3", "nothing was changed")
