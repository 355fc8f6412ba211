"""A real broker with mutual TLS for one test.

with mosquitto(folder, authority) as port: ...
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


@contextmanager
def mosquitto(folder: Path, authority, port: int | None = None) -> Iterator[int]:
    """It believes the clients of `authority`, which is one of `tests/agent/conftest.py`; its log is `<folder>/log`."""
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    certificate, key = (path.rename(folder / path.name) for path in authority.files("localhost"))
    (folder / "ca.pem").write_text(authority.pem)
    lines = (
        f"listener {port} 127.0.0.1",
        f"cafile {folder / 'ca.pem'}",
        f"certfile {certificate}",
        f"keyfile {key}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        f"user {pwd.getpwuid(os.getuid()).pw_name}",
    )
    (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    program = shutil.which("mosquitto", path=_PATH)
    assert program, "mosquitto is missing: scripts/setup says which package has it"
    with (folder / "log").open("a") as log:
        command = [program, "-v", "-c", folder / "mosquitto.conf"]
        broker = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, broker, folder / "log")
        yield port
    finally:
        broker.terminate()
        broker.wait(10)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(port: int, broker: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert broker.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
