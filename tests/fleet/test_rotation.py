"""Online keys and authorities replaced under a running fleet, by people who sign on folders of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, until
from typer.testing import CliRunner

from cli.errors import Refused
from cli.release import app
from wire import topics
from wire.dsse import open_by_role
from wire.errors import Untrusted
from wire.orders import Desired
from wire.trust import TrustedSet

ROLES = ["fleet", "snapshot", "timestamp"]


class Operator:
    """Types `shoal release` commands beside a fleet; only `fetch`, `init` and `publish` talk to it."""

    def __init__(self, fleet: FleetProcess, folder: Path) -> None:
        self.fleet, self.folder = fleet, folder

    def shoal(self, *words: str) -> Any:
        online = ("--data", str(self.fleet.data)) if words[0] in ("fetch", "init", "publish", "status") else ()
        yes = ("--yes",) if words[0] == "rotate" else ()
        done = CliRunner().invoke(app, [*words, *yes, "--trust", str(self.folder), *online, "--json"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout[done.stdout.index("{") :])

    def rotate(self, role: str) -> tuple[str, str]:
        """The id of the key before and after."""
        before = self.fleet.api("GET", "/api/v1/trust")["online"][role]["keyid"]
        self.shoal("fetch", "--prepare", role)
        assert self.shoal("rotate", role)["staged"] == []
        self.shoal("publish")
        return before, self.fleet.api("GET", "/api/v1/trust")["online"][role]["keyid"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    with FleetProcess(tmp_path_factory.mktemp("fleet") / "data") as fleet:
        yield fleet


@pytest.fixture(scope="module")
def operator(running: FleetProcess, tmp_path_factory: pytest.TempPathFactory) -> Operator:
    operator = Operator(running, tmp_path_factory.mktemp("signers") / "trust")
    operator.shoal("init", "--family", "intents", "--unencrypted")
    return operator


@pytest.fixture
def devices(running: FleetProcess, operator: Operator, enrolling: Any, tmp_path: Path) -> Iterator[Any]:
    with enrolling(running, tmp_path) as new_device:
        yield new_device


def documents(fleet: FleetProcess) -> dict[str, bytes]:
    return {n: d.encode() for n, d in fleet.api("GET", "/api/v1/trust")["documents"].items()}


@pytest.mark.parametrize("role", ROLES)
def test_an_online_key_is_replaced_under_a_running_fleet_and_a_device_goes_on(
    operator: Operator, role: str, devices: Any, request: pytest.FixtureRequest
) -> None:
    device = devices(f"kitchen-{role}")
    device.connect()
    seq = device.next_desired(seq=1).seq
    trust = TrustedSet.from_root(documents(operator.fleet)["root/1"])
    trust.offer(documents(operator.fleet), datetime.now(UTC))
    old, new = operator.rotate(role)
    assert old != new
    assert not (operator.fleet.data / "keys" / f"{role}.next.pem").exists()
    assert operator.fleet.api("GET", "/api/v1/trust")["next"] == {}
    assert trust.offer(documents(operator.fleet), datetime.now(UTC)) == ()
    if role == "fleet":
        again = device.next_desired(seq=seq + 1)  # verified with what targets names now
        assert again.models == ()


def test_a_fleet_key_that_was_rotated_out_does_not_verify_any_more(operator: Operator, devices: Any) -> None:
    """Attack: a desired state from the stolen, old fleet key."""
    device = devices("hall-1")
    device.connect()
    _, old = device.next(topics.Desired)
    device.verify(old, Desired)
    operator.rotate("fleet")
    trust = TrustedSet.from_root(documents(operator.fleet)["root/1"])
    assert trust.offer(documents(operator.fleet), datetime.now(UTC)) == ()
    with pytest.raises(Untrusted):
        open_by_role(old, Desired, trust.targets())


def test_after_a_rotation_a_restarted_fleet_signs_with_the_new_key(operator: Operator, devices: Any) -> None:
    _, new = operator.rotate("timestamp")
    operator.fleet.kill()
    operator.fleet.start()
    assert operator.fleet.api("GET", "/api/v1/trust")["online"]["timestamp"]["keyid"] == new
    device = devices("stairs-1")
    device.connect()
    device.next_desired(seq=1)


@pytest.mark.parametrize("role", ["fleet", "timestamp"])
def test_a_fleet_killed_between_database_and_key_file_finishes_the_switch_on_its_next_start(
    operator: Operator, devices: Any, role: str
) -> None:
    """Accident: power is cut after the metadata was stored and before the old key's file was replaced."""
    keys = operator.fleet.data / "keys"
    held = (keys / f"{role}.pem").read_bytes()
    _, new = operator.rotate(role)
    operator.fleet.kill()
    (keys / f"{role}.pem").rename(keys / f"{role}.next.pem")
    (keys / f"{role}.pem").write_bytes(held)
    operator.fleet.start()
    assert operator.fleet.api("GET", "/api/v1/trust")["online"][role]["keyid"] == new
    assert not (keys / f"{role}.next.pem").exists()
    device = devices(f"cellar-{role}")
    device.connect()
    device.next_desired(seq=1)


def test_online_keys_that_are_lost_are_replaced_by_new_ones(operator: Operator, devices: Any) -> None:
    """Accident: the keys folder is gone and there is no backup of it; the database is there."""
    device = devices("attic-1")
    device.connect()
    seq = device.next_desired(seq=1).seq
    device.disconnect()
    operator.fleet.stop()
    for role in ROLES:
        (operator.fleet.data / "keys" / f"{role}.pem").unlink()
    operator.fleet.start()
    assert "is not in the keys folder" in operator.fleet.log
    operator.shoal("fetch")
    for role in ROLES:
        operator.shoal("rotate", role)
    operator.shoal("publish")
    device.connect()
    assert device.next_desired(seq=seq + 1).device == "attic-1"


def test_a_key_is_not_made_for_a_role_that_is_signed_offline(operator: Operator) -> None:
    with pytest.raises(Refused, match="no online role"):
        operator.shoal("fetch", "--prepare", "root")


def test_rotation_of_authorities_brings_a_prepared_one_to_devices(operator: Operator, devices: Any) -> None:
    prepared = operator.fleet.api("POST", "/api/v1/authorities", {})
    operator.shoal("fetch")
    operator.shoal("rotate", "authorities")
    operator.shoal("publish")
    offered = documents(operator.fleet)
    trust = TrustedSet.from_root(offered["root/1"])
    assert trust.offer(offered, datetime.now(UTC)) == ()
    assert len(trust.authorities()) == 2, prepared
    assert set(trust.authorities()) == set(operator.fleet.api("GET", "/api/v1/trust")["authorities"])


def test_status_compares_the_folder_with_the_fleet(operator: Operator) -> None:
    operator.shoal("renew", "targets")
    roles = {r["role"]: r for r in operator.shoal("status")["roles"]}
    assert roles["targets"]["fleet"] == roles["targets"]["version"] - 1
    operator.shoal("publish")
    roles = {r["role"]: r for r in operator.shoal("status")["roles"]}
    assert all(roles[r]["fleet"] == roles[r]["version"] for r in ("root", "targets", "release-intents"))


def test_fresh_metadata_goes_on_after_everything(operator: Operator) -> None:
    until(lambda: documents(operator.fleet)["timestamp"], what="a timestamp")
    assert operator.shoal("publish")["documents"] == []
