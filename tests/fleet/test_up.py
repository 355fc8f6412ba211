"""Starting, stopping and starting again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle, until

from wire.units import instant

ANY_PORTS = ("--set", "https_port=0", "--set", "broker_port=0")


def up(data: Path, *settings: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start a fleet that is expected to end by itself."""
    options = [word for setting in ("https_port=0", "broker_port=0", *settings) for word in ("--set", setting)]
    command = [sys.executable, "-P", "-m", "fleet", "up", "--data", str(data), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ}, check=False
    )


def test_a_restart_comes_back_with_everything(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        publisher = initialise_trust(fleet)
        publisher.release(*tiny_bundle())
        device = new_device("a")
        device.connect()
        device.send(device.batch(1, 2))
        device.next_ack()
        device.report()
        body = {"family": "intents", "name": "kitchen", "version": "1.0.0", "waves": [100], "gates": "install"}
        fleet.api("POST", "/api/v1/rollouts", body)
        device.next_desired(seq=2)
        before = {p: fleet.api("GET", f"/api/v1/{p}") for p in ("trust", "models", "rollouts", "devices")}
        token, url, broker = fleet.token, fleet.url, fleet.broker

        assert fleet.stop() == 0
        fleet.start()
        assert (fleet.token, fleet.url, fleet.broker) == (token, url, broker)
        device.until_status("online")
        after = {p: fleet.api("GET", f"/api/v1/{p}") for p in before}
        for shown in (*before["devices"], *after["devices"]):
            del shown["last_seen"], shown["ages"]
        assert after == before
        assert device.next_desired(seq=2).models[0].target.endswith("1.0.0/x86-64")
        device.send(device.batch(2, 3))
        assert device.next_ack().stored == 3
        assert device.view()["stats"]["records"] == 3
        assert publisher.release(*tiny_bundle("1.1.0"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_fleet_and_broker(tmp_path: Path, number: signal.Signals) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        broker = fleet.api("GET", "/api/v1/status")["broker"]["pid"]
        children = [fleet.pid, broker]
        os.kill(fleet.pid, number)
        assert fleet.wait() == 0
        assert not any(psutil.pid_exists(pid) for pid in children)
        assert "Traceback" not in fleet.log


def test_a_second_fleet_on_a_folder_is_refused_with_folder_and_pid(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        second = up(fleet.data)
        assert second.returncode == 1
        assert str(fleet.data) in second.stderr
        assert f"pid {fleet.pid}" in second.stderr
        assert fleet.request("GET", "/healthz") == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("setting", ["https_port", "broker_port"])
def test_a_taken_port_is_told_with_its_setting(tmp_path: Path, setting: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        ended = up(tmp_path / "fleet", f"{setting}={port}")
    assert ended.returncode == 1
    assert f"port {port}" in ended.stderr
    assert f"--{setting.removesuffix('_port')} ADDRESS:PORT" in ended.stderr
    assert setting in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_broker_ends_the_start_with_the_package_to_install(tmp_path: Path) -> None:
    ended = up(tmp_path / "fleet", "mosquitto=/nowhere/mosquitto")
    assert ended.returncode == 1
    assert "apt install mosquitto" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_setting_with_a_wrong_unit_ends_the_start_before_anything_is_made(tmp_path: Path) -> None:
    ended = up(tmp_path / "fleet", SHOAL_FLEET_OFFLINE_AFTER="90 parsecs")
    assert ended.returncode == 2
    assert "SHOAL_FLEET_OFFLINE_AFTER" in ended.stderr
    assert not (tmp_path / "fleet").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = up(tmp_path / "file" / "fleet")
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that a fleet ran on and left."""
    with FleetProcess(tmp_path_factory.mktemp("made") / "fleet") as fleet:
        return fleet.data


@pytest.mark.parametrize("name", ["ca/ca.key", "ca/ca.pem", "keys/fleet.pem", "fleet.db"])
@pytest.mark.parametrize("damage", [b"garbage", None])
def test_a_damaged_folder_is_told_by_file(made: Path, tmp_path: Path, name: str, damage: bytes | None) -> None:
    """Accident: a file of the data folder was overwritten, or cannot be read (a folder stands in its place)."""
    data = tmp_path / "fleet"
    shutil.copytree(made, data)
    (data / name).unlink()
    if damage is None:
        (data / name).mkdir()
    else:
        (data / name).write_bytes(damage)
    ended = up(data)
    assert ended.returncode == 1
    assert Path(name).name in ended.stderr
    assert "backup" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_secrets_are_for_this_user_only_and_differ_between_fleets(tmp_path: Path) -> None:
    secrets = ("operator-token", "ca/ca.key", "ca/client.key", "keys/fleet.pem", "keys/kit-secret")
    contents = []
    for name in ("one", "two"):
        with FleetProcess(tmp_path / name) as fleet:
            contents.append([(fleet.data / s).read_bytes() for s in secrets])
            for path in fleet.data.rglob("*"):
                if (
                    path.suffix in (".key", ".pem") and b"PRIVATE" in path.read_bytes()
                ) or path.name == "operator-token":
                    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert stat.S_IMODE(fleet.data.stat().st_mode) == 0o700
            assert fleet.token.encode() not in (fleet.data / "fleet.db").read_bytes()
            assert fleet.token not in fleet.log
            assert set(json.loads((fleet.data / "run.json").read_text())) == {"https", "broker", "pid"}
    assert not set(contents[0]) & set(contents[1])


def test_a_run_file_that_makes_no_sense_is_passed_over(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "fleet"
    shutil.copytree(made, data)
    (data / "run.json").write_text('{"https": 99999, "broker": -1, "pid": 1}')
    with FleetProcess(data) as fleet:
        assert fleet.request("GET", "/healthz")[0] == 200


def test_a_start_that_was_killed_between_certificate_and_key_is_mended(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "fleet"
    shutil.copytree(made, data)
    shutil.copyfile(data / "ca" / "client.key", data / "ca" / "server.key")
    with FleetProcess(data) as fleet:
        assert fleet.request("GET", "/healthz")[0] == 200


def test_a_signal_during_the_start_ends_it_in_order(tmp_path: Path) -> None:
    """Ctrl-C at many moments: no traceback, no broker left behind, and the folder serves the next start."""
    for moment in ("lock", "ca/ca.pem", "fleet.db", "operator-token", "broker/mosquitto.conf"):
        data = tmp_path / Path(moment).name
        command = [sys.executable, "-P", "-m", "fleet", "up", "--data", str(data), *ANY_PORTS]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as starting:
            until((data / moment).exists, what=moment)
            starting.send_signal(signal.SIGINT)
            _, errors = starting.communicate(timeout=20)
        assert starting.returncode == 0, errors
        assert "Traceback" not in errors
        with FleetProcess(data) as fleet:
            assert fleet.request("GET", "/healthz")[0] == 200


def test_a_fleet_on_every_ipv6_address_finds_its_own_broker(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet", https_host="::", broker_host="::") as fleet:
        assert fleet.api("GET", "/api/v1/status")["broker"]["state"] == "running"


def test_a_fleet_that_was_off_for_longer_than_its_signatures_live_signs_again(tmp_path: Path, enrolling: Any) -> None:
    lives = {"timestamp_lifetime": "1 s", "snapshot_lifetime": "1 s", "desired_lifetime": "1 s"}
    with FleetProcess(tmp_path / "fleet", **lives) as fleet, enrolling(fleet, tmp_path) as new_device:
        publisher = initialise_trust(fleet)
        device = new_device("a")
        fleet.stop()
        expired = datetime.now(UTC) + timedelta(seconds=1.2)
        until(lambda: datetime.now(UTC) > expired, what="the end of every signature")
        fleet.settings |= dict.fromkeys(lives, "1 h")
        fleet.start()
        device.connect()
        desired = device.next_desired(seq=2)
        assert instant(desired.expires) > datetime.now(UTC)
        shown = fleet.api("GET", "/api/v1/status")["trust"]
        assert all(instant(shown[name]["expires"]) > datetime.now(UTC) for name in ("timestamp", "snapshot"))
        assert publisher.release(*tiny_bundle())


def test_old_tls_is_refused(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        context = fleet.tls()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            fleet.request("GET", "/healthz", tls=context)


def test_freshness_is_signed_again_before_it_ends(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet", timestamp_lifetime="4 s", snapshot_lifetime="8 s") as fleet:
        initialise_trust(fleet)
        version = lambda: fleet.api("GET", "/api/v1/status")["trust"]["timestamp"]["version"]  # noqa: E731
        first = version()
        until(lambda: version() >= first + 2, what="two newer timestamps")


def test_the_fleet_imports_nothing_heavy_and_no_other_program_of_ours() -> None:
    code = "import fleet.up, sys; print(*{name.split('.')[0] for name in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "transformers", "agent", "compiler", "cli"}
    assert not heavy & set(ended.stdout.split())
