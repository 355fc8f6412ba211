"""Attacks on the connection from a device to its fleet, by a server that is not the fleet's, or no longer."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from simulators import simulator

from agent.errors import AgentError, Untrusted
from agent.identity.tls import Https, fleet_context

Authority = simulator("agent").Authority
NOW = datetime.now(UTC)
BODY = b"token"


@pytest.fixture
def ours(tmp_path: Path):
    return _authority(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path):
    return _authority(tmp_path / "theirs")


def _authority(folder: Path):
    folder.mkdir()
    return Authority(folder)


class Server:
    """An HTTPS server that keeps what it is told, and says 200."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.listener = socket.create_server(("", 0))  # 127.0.0.2 is this machine too, and no name of its certificate
        self.listener.settimeout(10)
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"
        self.heard = b""
        self._context = context

    def serve(self) -> None:
        try:
            raw, _ = self.listener.accept()
            raw.settimeout(10)
            with self._context.wrap_socket(raw, server_side=True) as connection:
                while not self.heard.endswith(BODY):  # closing on what was not read would cut the answer off
                    self.heard += (piece := connection.recv(65536))
                    if not piece:
                        return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except OSError:
            return  # the device hung up


@contextmanager
def server(files: tuple[Path, Path], *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    context.maximum_version = newest
    server = Server(context)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.listener.close()
        thread.join(20)


def ask(url: str, authorities: str, *, now: datetime = NOW) -> int:
    https = Https(url, lambda: fleet_context(authorities), lambda: now, timeout=10)
    connection, answer = https.post("/secret", BODY, {})
    with answer:
        connection.close()
        return answer.status


def test_a_server_of_another_authority_hears_nothing(ours, theirs) -> None:
    """Attack: wrong CA. Somebody answers at the fleet's address with a certificate of their own authority."""
    with server(ours.files("localhost")) as good:
        assert ask(good.url, ours.pem) == 200
    with server(theirs.files("localhost")) as bad:
        with pytest.raises(AgentError):
            ask(bad.url, ours.pem)
        assert bad.heard == b""


def test_a_server_with_another_name_hears_nothing(ours) -> None:
    """Attack: wrong host. A device's own certificate, by the fleet's own authority, is shown as the fleet's."""
    with server(ours.files("localhost")) as bad:
        with pytest.raises(AgentError):
            ask(bad.url.replace("localhost", "127.0.0.2"), ours.pem)
        assert bad.heard == b""


def test_an_old_version_of_tls_is_not_spoken(ours) -> None:
    """Attack: old TLS. Whoever sits on the line offers a version with weaker promises."""
    with server(ours.files("localhost"), newest=ssl.TLSVersion.TLSv1_2) as bad:
        with pytest.raises(AgentError):
            ask(bad.url, ours.pem)
        assert bad.heard == b""


def test_a_server_whose_certificate_expired_hears_nothing(ours) -> None:
    """Attack: expired. The key of a server's old certificate was found; OpenSSL does not look at the dates here."""
    with server(ours.files("localhost", NOW - timedelta(seconds=5))) as bad:
        with pytest.raises(Untrusted, match="expired"):
            ask(bad.url, ours.pem)
        assert bad.heard == b""


def test_a_machine_whose_clock_stands_in_2100_is_not_shut_out(ours) -> None:
    """Accident: clock at 2100. By it the certificate expired; by the time that the fleet signed it did not."""
    with server(ours.files("localhost", NOW - timedelta(seconds=5))) as good:
        assert ask(good.url, ours.pem, now=NOW - timedelta(days=1)) == 200
