"""The change from one certificate authority to the next, and certificates that are renewed while everything runs."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from fleet_process import ApiError, FleetProcess, Publisher, initialise_trust, until
from securesystemslib.signer import Key

from fleet.api.tls import ServerTls
from fleet.errors import Conflict, Malformed, NotFound
from fleet.trust import ca
from fleet.trust.ca import Authority, load_certificate
from fleet.trust.issuer import key_to_pem, to_pem
from wire import topics
from wire.signing import RoleKeys, release_role, targets_document

NOW = datetime.now(UTC)
ROUTE = "/api/v1/authorities"


# --- the folder ---------------------------------------------------------------------------------------------------


def test_the_next_authority_is_made_once_and_believed_before_it_is_used(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NOW)
    first = authority.current
    prepared = authority.prepare(NOW)
    assert authority.prepare(NOW) == prepared
    assert authority.pems() == [first.pem, prepared.pem]
    assert authority.believed_path.read_text() == first.pem + prepared.pem
    assert [authority.state_of(i) for i in authority.issuers()] == ["in use", "next"]
    assert Authority.open(tmp_path, NOW).pems() == authority.pems()


def test_what_was_issued_before_a_change_is_still_believed_until_the_authority_is_removed(tmp_path: Path) -> None:
    authority, key = Authority.open(tmp_path, NOW), ec.generate_private_key(ec.SECP256R1()).public_key()
    before = authority.issue_device("a", key, lifetime=timedelta(days=1), now=NOW)
    first = authority.current.fingerprint
    authority.use(authority.prepare(NOW).fingerprint)
    after = authority.issue_device("a", key, lifetime=timedelta(days=1), now=NOW)
    assert [authority.state_of(i) for i in authority.issuers()] == ["in use", "old"]
    assert {authority.issuer_of(before), authority.issuer_of(after)} == {*authority.issuers()}
    with pytest.raises(Conflict, match="in use"):
        authority.remove(authority.current.fingerprint)
    authority.remove(first)
    assert authority.issuer_of(before) is None
    assert authority.pems() == Authority.open(tmp_path, NOW).pems() == [authority.pem]
    with pytest.raises(NotFound):
        authority.use(first)


@pytest.mark.parametrize("write", range(4))
def test_a_change_that_is_killed_between_two_files_leaves_one_authority_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Accident: power is lost while the fleet changes to the next authority."""
    authority = Authority.open(tmp_path, NOW)
    chosen = authority.prepare(NOW).fingerprint
    both = {issuer.fingerprint for issuer in authority.issuers()}
    real, done = ca.write, 0

    def dies(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        nonlocal done
        if done == write:
            raise KeyboardInterrupt
        done += 1
        real(path, data, mode=mode)

    monkeypatch.setattr(ca, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        authority.use(chosen)
    monkeypatch.undo()

    opened = Authority.open(tmp_path, NOW)
    assert {issuer.fingerprint for issuer in opened.issuers()} == both
    assert len(opened.issuers()) == 2
    opened.use(chosen)
    assert Authority.open(tmp_path, NOW).current.fingerprint == chosen
    opened.use(opened.prepare(NOW).fingerprint)
    again = Authority.open(tmp_path, NOW)
    assert [again.state_of(issuer) for issuer in again.issuers()] == ["in use", "old", "old"]


def test_a_key_that_is_not_the_certificates_stops_the_start(tmp_path: Path) -> None:
    Authority.open(tmp_path, NOW)
    (tmp_path / "ca.key").write_bytes(key_to_pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(Malformed, match="put both back"):
        Authority.open(tmp_path, NOW)


def test_only_this_user_may_read_any_key(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca", NOW)
    authority.use(authority.prepare(NOW).fingerprint)
    authority.prepare(NOW)
    authority.server(["localhost"], NOW)
    authority.client("_fleet", NOW)
    with authority.passing("a", timedelta(minutes=1), NOW) as pair:
        keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
        assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
        assert len(keys) == 6
    assert not pair.key.exists()


# --- TLS ----------------------------------------------------------------------------------------------------------


@contextmanager
def served(tls: ServerTls) -> Iterator[int]:
    """A TLS server that says the name in the client's certificate and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:
                    return
                with suppress(OSError), tls.context.wrap_socket(raw, server_side=True) as connection:
                    shown = connection.getpeercert() or {}
                    connection.sendall(json.dumps(shown.get("subject", "nobody")).encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(port: int, *, believes: str, shows: Path | None = None) -> bytes:
    context = ssl.create_default_context(cadata=believes)
    if shows is not None:
        context.load_cert_chain(shows)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return connection.recv(1000)


def device_file(authority: Authority, path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.issue_device(path.stem, key.public_key(), lifetime=timedelta(days=1), now=NOW)
    path.write_bytes(to_pem(certificate) + key_to_pem(key))
    return path


def test_a_device_that_slept_through_changes_of_authority_still_gets_in(tmp_path: Path) -> None:
    """Three changes in one second; each client believes one authority only, the first of them too."""
    authority = Authority.open(tmp_path, NOW)
    believed = [authority.pem]
    for _ in range(3):
        authority.use(authority.prepare(NOW).fingerprint)
        believed.append(authority.pem)
    tls = ServerTls(authority.server(["localhost"], NOW), authority.believed_path)
    stranger = Authority.open(tmp_path / "stranger", NOW).pem
    with served(tls) as port:
        assert [ask(port, believes=pem) for pem in believed] == [b'"nobody"'] * 4
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, believes=stranger)


def test_a_server_that_runs_takes_new_authorities_and_forgets_removed_ones(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca", NOW)
    tls = ServerTls(authority.server(["localhost"], NOW), authority.believed_path)
    old, first = device_file(authority, tmp_path / "old.pem"), authority.current
    with served(tls) as port:
        assert b'"old"' in ask(port, believes=first.pem, shows=old)
        authority.use(authority.prepare(NOW).fingerprint)
        new = device_file(authority, tmp_path / "new.pem")
        with pytest.raises(ssl.SSLError):
            ask(port, believes=first.pem, shows=new)
        authority.server(["localhost"], NOW)
        tls.renew()
        for shows in (old, new):
            assert f'"{shows.stem}"'.encode() in ask(port, believes=first.pem, shows=shows)
        authority.remove(first.fingerprint)
        tls.renew()
        assert b'"new"' in ask(port, believes=authority.pem, shows=new)
        with pytest.raises(ssl.SSLError):
            ask(port, believes=authority.pem, shows=old)


# --- a running fleet ----------------------------------------------------------------------------------------------


def name_authorities(fleet: FleetProcess, publisher: Publisher, version: int, pems: list[str]) -> None:
    """Targets metadata as the offline signers sign it for `shoal release rotate authorities`."""
    fields = dict(fleet.api("GET", "/api/v1/trust")["online"]["fleet"])
    key = Key.from_dict(fields.pop("keyid"), fields)
    families = {publisher.family: RoleKeys((publisher.release_signer.public_key,))}
    targets = targets_document(
        version, RoleKeys((key,)), families, publisher.expires, [publisher.targets], authorities=pems
    )
    publisher.post({"targets": targets, **publisher.release_documents()})
    assert release_role(publisher.family) in fleet.api("GET", "/api/v1/trust")["documents"]


def by_state(fleet: FleetProcess, state: str) -> dict[str, Any]:
    (found,) = [a for a in fleet.api("GET", ROUTE) if a["state"] == state]
    return dict(found)


def served_certificate(address: str) -> x509.Certificate:
    host, port = address.rsplit("/", 1)[-1].split(":")
    return load_certificate(ssl.get_server_certificate((host, int(port))).encode())


def test_a_fleet_changes_its_authority_and_loses_no_device(tmp_path: Path, enrolling: Any) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet, enrolling(fleet, tmp_path) as new_device:
        publisher = initialise_trust(fleet)
        first, first_pem = by_state(fleet, "in use"), fleet.ca_file.read_text()
        stays = new_device("stays")
        stays.connect()
        (chosen,) = [a["fingerprint"] for a in fleet.api("POST", ROUTE) if a["state"] == "next"]

        with pytest.raises(ApiError, match="rotate authorities") as refused:
            fleet.api("POST", f"{ROUTE}/{chosen}/use")
        assert refused.value.status == 422
        assert by_state(fleet, "in use") == {**first, "devices": 1}

        next_pem = (fleet.data / "ca" / "next" / f"{chosen}.pem").read_text()
        name_authorities(fleet, publisher, 2, [first_pem, next_pem[next_pem.index("-----BEGIN CERT") :]])
        stays.send(stays.batch(1))
        assert stays.next_ack().stored == 1
        cut = threading.Event()
        stays.client.on_disconnect = lambda *_: cut.set()
        fleet.api("POST", f"{ROUTE}/{chosen}/use")
        assert by_state(fleet, "in use")["fingerprint"] == chosen
        assert by_state(fleet, "old")["devices"] == 1

        # What is live ends, to see the change; who believes only the old authority, and shows a certificate of it, gets
        # in again.
        assert cut.wait(10), "the live connection"
        stays.disconnect()
        until(
            lambda: gets_in(fleet, trusting(fleet.ca_file, tmp_path / "stays.pem")), what="the broker that comes back"
        )
        old_only = tmp_path / "old.pem"
        old_only.write_text(first_pem)
        for address in (fleet.url, fleet.broker):
            until(lambda address=address: signer_of(served_certificate(address), fleet) == chosen, what="the change")
        stays.tls = lambda: trusting(old_only, tmp_path / "stays.pem")
        stays.connect()
        until(lambda: is_heard(stays), within=20, what="the fleet's own line")
        stays.send(stays.batch(2))
        assert stays.next_ack().stored == 2

        joins = new_device("joins")
        joins.connect()
        joins.send(joins.batch(1))
        assert joins.next_ack().stored == 1
        assert by_state(fleet, "in use")["devices"] == 1

        with pytest.raises(ApiError, match="1 devices use a certificate of it") as refused:
            fleet.api("DELETE", f"{ROUTE}/{first['fingerprint']}")
        assert refused.value.status == 409
        ended = threading.Event()
        stays.client.on_disconnect = lambda *_: ended.set()
        fleet.api("DELETE", f"{ROUTE}/{first['fingerprint']}?force=true")
        assert ended.wait(10), "the live connection of a certificate that is not believed any more"
        stays.disconnect()
        until(lambda: gets_in(fleet, joins.tls()), what="the broker that comes back")
        assert not gets_in(fleet, trusting(fleet.ca_file, tmp_path / "stays.pem"))

        before = fleet.api("GET", ROUTE)
        fleet.stop()
        fleet.start()
        assert fleet.api("GET", ROUTE) == before
        assert gets_in(fleet, joins.tls())


def is_heard(device: Any) -> bool:
    try:
        device.report()
        device.next(topics.Ack, within=2)
    except queue.Empty:
        return False
    return True


def signer_of(certificate: x509.Certificate, fleet: FleetProcess) -> str | None:
    subjects = {a["subject"]: a["fingerprint"] for a in fleet.api("GET", ROUTE)}
    return subjects.get(certificate.issuer.rfc4514_string())


def trusting(believed: Path, shows: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(believed))
    context.load_cert_chain(shows)
    return context


def gets_in(fleet: FleetProcess, tls: ssl.SSLContext) -> bool:
    """Whether the broker answers a CONNECT with success: the certificate alone decides here."""
    host, port = fleet.broker.split(":")
    hello = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x02zz"
    try:
        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            tls.wrap_socket(raw, server_hostname=host) as connection,
        ):
            connection.sendall(hello)
            return connection.recv(4)[:1] == b"\x20"
    except OSError:
        return False


def test_the_fleets_own_certificates_are_renewed_while_it_runs(tmp_path: Path, enrolling: Any) -> None:
    with (
        FleetProcess(tmp_path / "fleet", server_lifetime="9 s") as fleet,
        enrolling(fleet, tmp_path) as new_device,
    ):
        initialise_trust(fleet)
        device = new_device("a")
        device.connect()
        addresses = (fleet.url, fleet.broker)
        first = [served_certificate(address).serial_number for address in addresses]
        own = (fleet.data / "ca" / "client.pem").read_bytes()
        for address, serial in zip(addresses, first, strict=True):
            until(lambda a=address, s=serial: served_certificate(a).serial_number != s, within=20, what="a renewal")
        until(lambda: (fleet.data / "ca" / "client.pem").read_bytes() != own, within=20, what="the client's renewal")
        # The first ones have expired by now or soon; the connection that began with them goes on, new ones get in.
        ends = served_certificate(fleet.url).not_valid_after_utc
        until(lambda: datetime.now(UTC) > ends, within=20, what="the end of a certificate")
        device.send(device.batch(1))
        assert device.next_ack().stored == 1
        device.disconnect()
        device.connect()
        # The fleet's own client has to show its new certificate, as a connection of its own has to be made again.
        before = fleet.api("GET", "/api/v1/status")["broker"]["pid"]
        os.kill(before, signal.SIGTERM)
        until(lambda: device.client is not None and not device.client.is_connected(), what="the end of the broker")
        until(lambda: device.client is not None and device.client.is_connected(), what="a new broker")
        device.send_until_stored(device.batch(2), 2)


def test_the_commands_show_and_change_authorities(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        publisher = initialise_trust(fleet)
        assert "in use" in shoal(fleet, "list")
        chosen = next(a for a in json.loads(shoal(fleet, "next", "--json")) if a["state"] == "next")["fingerprint"]
        assert "rotate authorities" in shoal(fleet, "use", chosen[:12], code=1)
        believed = x509.load_pem_x509_certificates((fleet.data / "ca" / "believed.pem").read_bytes())
        name_authorities(fleet, publisher, 2, [to_pem(certificate).decode() for certificate in believed])
        assert "in use" in shoal(fleet, "use", chosen[:12])
        old = by_state(fleet, "old")["fingerprint"]
        assert "it is in use" in shoal(fleet, "remove", chosen, code=1)
        shoal(fleet, "remove", old)
        assert [a["fingerprint"] for a in json.loads(shoal(fleet, "list", "--json"))] == [chosen]
        assert "0 authorities begin so" in shoal(fleet, "use", "no", code=1)


def shoal(fleet: FleetProcess, *arguments: str, code: int = 0) -> str:
    """Run `shoal authority` against a fleet on this machine; what it printed."""
    command = [sys.executable, "-P", "-m", "cli", "authority", *arguments, "--data", str(fleet.data)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr
