"""A real agent and a real fleet: how a device gets in, stays in, comes back and is let go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, World
from fleet_process import ApiError, FleetProcess, until
from securesystemslib.signer import Key
from sqlmodel import select
from tiny_bundle import make_layout

from agent.identity.identity import FOLDER, Identity
from fleet.store.backup import restore, save
from fleet.store.database import Database
from fleet.store.tables import CertificateRow
from wire.signing import RoleKeys, targets_document

pytestmark = pytest.mark.slow


class Joining(World):
    """Devices that may not be there, or not any more."""

    def device(self, device: str) -> Any:
        try:
            return super().device(device)
        except ApiError:
            return {}

    def is_online(self, device: str) -> bool:
        return self.device(device).get("status") == "online"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Joining]:
    with ExitStack() as stack:
        yield Joining(tmp_path, stack)


def serial(agent: AgentProcess) -> int:
    return Identity.load(agent.state).certificate().serial_number


def renewed(agent: AgentProcess, before: int) -> bool:
    return (agent.state / FOLDER).exists() and serial(agent) != before


def test_a_device_of_a_batch_is_in_as_soon_as_an_operator_accepts_it(world: Joining) -> None:
    world.start_fleet()
    kit = world.fleet.api("POST", "/api/v1/batches", {"batch": "hall", "profile": "x86-64", "quota": 2})
    path = world.folder / "hall-kit.json"
    path.write_text(json.dumps(kit))
    agent = AgentProcess(world.folder / "hall-1")
    words = ["enrol", "--kit", str(path), "--device", "hall-1"]
    early = agent.command(*words, "--wait", "1 s")
    assert early.returncode == 1
    assert "shoal device accept hall-1" in early.stderr
    assert not (agent.state / FOLDER).exists()
    world.fleet.api("POST", "/api/v1/devices/hall-1/accept", {})
    done = agent.command(*words)
    assert done.returncode == 0, done.stderr
    assert not path.exists(), "the claim's key does not stay"
    agent.start()
    world.stack.callback(agent.stop)
    until(lambda: world.is_online("hall-1"), what="the device online")


def test_a_rejected_device_hears_it_while_it_waits(world: Joining) -> None:
    world.start_fleet()
    kit = world.fleet.api("POST", "/api/v1/batches", {"batch": "hall", "profile": "x86-64", "quota": 2})
    path = world.folder / "hall-kit.json"
    path.write_text(json.dumps(kit))
    command = [sys.executable, "-P", "-m", "agent.main", "enrol", "--kit", str(path), "--device", "hall-1"]
    command += ["--state", str(world.folder / "hall-1")]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    try:
        until(lambda: world.device("hall-1").get("status") == "pending", what="the device pending")
        world.fleet.api("POST", "/api/v1/devices/hall-1/reject", {"reason": "not ours"})
        _, said = waiting.communicate(timeout=60)
    finally:
        waiting.kill()
        waiting.wait()
    assert waiting.returncode == 1
    assert "reject" in said


def test_a_running_device_renews_its_certificate_and_goes_on(world: Joining) -> None:
    world.start_fleet(certificate_lifetime="20 min")  # they begin an hour early: past the middle of their life at once
    agent = world.enrolled("kitchen-1")
    first = serial(agent)
    agent.start()
    until(lambda: renewed(agent, first), what="a renewed certificate in use")
    until(lambda: agent.status()["link"]["up"], what="the line up again")
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    assert agent.status()["certificate"]["renewal"].startswith("due ")
    words = agent.command("status").stdout
    assert "certificate until" in words
    assert "trust: heard the fleet" in words
    agent.stop()
    agent.start()
    until(lambda: world.is_online("kitchen-1"), what="the device online after a restart")


def test_a_device_that_was_off_beyond_the_end_of_its_certificate_comes_back_by_itself(world: Joining) -> None:
    """Accident: off for longer than its certificate lives. The broker's handshake refuses it."""
    world.start_fleet(certificate_lifetime="5 s")
    agent = world.enrolled("kitchen-1")
    first, ends = serial(agent), Identity.load(agent.state).certificate().not_valid_after_utc
    until(lambda: datetime.now(UTC) > ends, what="the end of the certificate")
    agent.start()
    until(lambda: renewed(agent, first), what="a renewed certificate in use", within=60)
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    assert "certificate" in agent.log


def change_authority(world: Joining) -> None:
    """As `shoal authority next`, `shoal release rotate authorities` and `shoal authority use` do it."""
    fleet, publisher = world.fleet, world.publisher
    known = fleet.api("POST", "/api/v1/authorities")
    (following,) = [found["fingerprint"] for found in known if found["state"] == "next"]
    trust = fleet.api("GET", "/api/v1/trust")
    fields = dict(trust["online"]["fleet"])
    key = RoleKeys((Key.from_dict(fields.pop("keyid"), fields),))
    families = {publisher.family: RoleKeys((publisher.release_signer.public_key,))}
    signed = targets_document(2, key, families, publisher.expires, [publisher.targets], trust["authorities"])
    publisher.post({"targets": signed, **publisher.release_documents()})
    fleet.api("POST", f"/api/v1/authorities/{following}/use")


def issuer(agent: AgentProcess) -> str:
    return Identity.load(agent.state).certificate().issuer.rfc4514_string()


def test_a_change_of_authority_reaches_a_device_that_runs_and_one_that_slept_through_it_all(world: Joining) -> None:
    """Rotation: one device hears the signed metadata in time. The other sleeps until its own certificate has run out
    too, and knows neither the new authority nor a certificate that anybody takes."""
    world.start_fleet(certificate_lifetime="20 s")
    awake, asleep = world.enrolled("awake"), world.enrolled("asleep")
    before, slept = issuer(asleep), Identity.load(asleep.state).certificate()
    awake.start()
    until(lambda: world.is_online("awake"), what="the device online")
    change_authority(world)
    until(lambda: issuer(awake) != before, what="a certificate of the new authority", within=60)
    until(lambda: world.is_online("awake"), what="the device online")
    until(lambda: datetime.now(UTC) > slept.not_valid_after_utc, what="the end of the certificate", within=30)
    asleep.start()
    until(lambda: issuer(asleep) != before, what="a certificate of the new authority", within=60)
    until(lambda: world.is_online("asleep"), what="the device online")


def devices_by_authority(fleet: FleetProcess) -> dict[str, int]:
    return {found["state"]: found["devices"] for found in fleet.api("GET", "/api/v1/authorities")}


def test_a_device_that_runs_moves_to_a_new_authority_long_before_its_certificate_is_due(world: Joining) -> None:
    """Rotation: half a year would pass until every device had a certificate of the new authority by itself."""
    world.start_fleet()
    agent = world.enrolled("kitchen-1", SHOAL_AGENT_RENEWAL_SPREAD="0 s")
    before = issuer(agent)
    agent.start()
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    first = serial(agent)
    change_authority(world)
    until(lambda: issuer(agent) != before, what="a certificate of the new authority", within=60)
    until(lambda: devices_by_authority(world.fleet) == {"in use": 1, "old": 0}, what="no device on the old authority")
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    assert serial(agent) != first
    assert agent.status()["certificate"]["renewal"].startswith("due ")


def known_certificates(world: Joining) -> set[str]:
    return {found["serial"] for found in world.device("kitchen-1")["certificates"]}


def certificates_in(data: Path) -> set[str]:
    with closing(Database.in_folder(data)) as database, database.transaction() as session:
        return set(session.exec(select(CertificateRow.serial)))


PASSPHRASE = "correct horse battery staple"


def test_a_restored_fleet_is_accepted_by_a_device_that_renewed_since_the_backup(world: Joining) -> None:
    """Accident: the machine of the fleet is lost. The backup does not know the certificate that the device uses; nobody
    touches the device, and after a while it is heard again and gets a model."""
    # Certificates begin an hour early: past the middle of their life at once, and not renewed again for five minutes.
    lifetime = "20 min"
    world.start_fleet(certificate_lifetime=lifetime)
    agent = world.enrolled("kitchen-1", SHOAL_AGENT_RENEWAL_SPREAD="0 s")
    save(world.fleet.data, world.folder / "backup", PASSPHRASE)
    known = serial(agent)
    agent.start()
    until(lambda: renewed(agent, known), what="a certificate that the backup does not know")
    until(lambda: known_certificates(world) == {f"{serial(agent):x}"}, what="its use")
    forgotten, ports = serial(agent), [address.rpartition(":")[2] for address in (world.fleet.url, world.fleet.broker)]
    world.fleet.kill()

    restore(world.folder / "backup", world.folder / "restored", PASSPHRASE)
    assert certificates_in(world.folder / "restored") == {f"{known:x}"}
    settings = {"https_port": ports[0], "broker_port": ports[1], "certificate_lifetime": lifetime, "gather": "50 ms"}
    fleet = world.stack.enter_context(FleetProcess(world.folder / "restored", **settings))
    world.fleet = world.publisher.fleet = fleet
    until(lambda: world.device("kitchen-1")["stats"]["records"], what="telemetry", within=60)
    until(lambda: known_certificates(world) == {f"{serial(agent):x}"}, what="the renewed certificate in use")
    assert serial(agent) not in (known, forgotten)
    (event,) = [e for e in world.device("kitchen-1")["security"] if e["subject"] == "certificate"]
    assert f"taken in: {forgotten:x}" in event["reason"]

    bundle = make_layout(world.folder / "layout")
    world.publisher.release_layout(world.folder / "layout")
    fleet.api(
        "POST",
        "/api/v1/rollouts",
        {"family": "intents", "name": "kitchen", "version": "1.0.0", "waves": [100], "gates": "install"},
    )
    until(lambda: agent.answers_with(bundle), what="the model that the restored fleet rolls out", within=30)


def test_a_device_that_is_retired_wipes_itself_and_ends(world: Joining) -> None:
    world.start_fleet()
    agent = world.enrolled("kitchen-1")
    agent.start()
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    world.fleet.api("POST", "/api/v1/devices/kitchen-1/retire", {"now": False})
    until(lambda: not (agent.state / FOLDER).exists(), what="no identity left")
    until(lambda: world.device("kitchen-1")["status"] == "retired", what="the fleet knows")
    assert agent.ended() == 0
    assert {path.name for path in agent.state.iterdir()} <= {"agent.lock"}
    assert "not enrolled" in agent.command("run").stderr


def test_a_device_that_was_off_when_it_was_retired_wipes_itself_when_it_comes(world: Joining) -> None:
    world.start_fleet()
    agent = world.enrolled("kitchen-1")
    agent.start()
    until(lambda: world.is_online("kitchen-1"), what="the device online")
    agent.stop()
    world.fleet.api("POST", "/api/v1/devices/kitchen-1/retire", {"now": False})
    agent.start()
    until(lambda: not (agent.state / FOLDER).exists(), what="no identity left")
    assert agent.ended() == 0
