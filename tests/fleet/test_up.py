"""Starting, stopping and starting again."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle, until


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
        body = {"family": "intents", "name": "kitchen", "version": "1.0.0", "waves": [100]}
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
            del shown["last_seen"]
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
