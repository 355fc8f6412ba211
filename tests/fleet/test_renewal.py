"""How a device stays in: two certificates, the next one promoted by its use, and renewal after the end."""

from __future__ import annotations

import base64
import queue
import socket
import ssl
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from fleet_process import FleetProcess, Publisher, initialise_trust, until
from joining import Batch, Holder, certificate_in, new_key, request_for, stranger
from securesystemslib.signer import CryptoSigner

from fleet.errors import Forbidden, Malformed
from fleet.store.database import Database
from fleet.store.tables import Device
from fleet.trust.ca import Authority, read_request
from fleet.trust.certificates import AT_MOST, Certificates
from fleet.trust.renewal import Renewals
from wire import topics
from wire.dsse import seal
from wire.messages import Renewal

SHORT = 3
"""Seconds that certificates live where they are to run out."""


@pytest.fixture(autouse=True)
def _with_trust(publisher: Publisher) -> None:
    """Every kit carries signed metadata."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """A fleet whose certificates run out at once."""
    folder = tmp_path_factory.mktemp("short")
    with FleetProcess(folder / "fleet", certificate_lifetime=f"{SHORT} s", gather="100 ms") as fleet:
        initialise_trust(fleet)
        yield fleet


def states(fleet: FleetProcess, device: str) -> list[str]:
    """The states of the certificates that are good for something, by name."""
    return sorted(c["state"] for c in fleet.api("GET", f"/api/v1/devices/{device}")["certificates"])


def expired(holder: Holder) -> Holder:
    """The same once its certificate ran out, which TLS proves."""
    until(lambda: datetime.now(UTC) > holder.certificate.not_valid_after_utc, what="the end of the certificate")
    with pytest.raises((ssl.SSLError, OSError)):
        holder.seen()
    return holder


# With a certificate


def test_the_next_certificate_takes_the_place_of_the_current_one_when_it_is_used(
    fleet: FleetProcess, tmp_path: Path
) -> None:
    current = Holder.enrolled(fleet, tmp_path, "two-slots")
    following = current.renewed(new_key())
    assert following.certificate.public_key() == following.key.public_key()
    assert current.seen() != 403
    assert states(fleet, "two-slots") == ["current", "next"]

    assert following.seen() != 403
    assert states(fleet, "two-slots") == ["current"]
    until(lambda: current.seen() == 403, what="the refusal of the old certificate")
    assert current.ask("two-slots", new_key(), again=True)[0] == 403
    assert following.renewed(new_key()).seen() != 403


def test_a_statement_of_the_next_key_promotes_it_and_the_old_key_signs_nothing_more(
    fleet: FleetProcess, new_device: Any
) -> None:
    device = new_device("by-report")
    device.connect()
    device.answer_to(device.report())
    key, old = new_key(), CryptoSigner(device.key)
    status, body = device.renew(key)
    assert status == 200
    # Until it uses the next one, the current one is good.
    device.answer_to(device.report())
    assert states(fleet, "by-report") == ["current", "next"]

    device.disconnect()
    device.use(certificate_in(body), key)
    device.connect()
    device.answer_to(device.report())
    assert states(fleet, "by-report") == ["current"]
    device.send(device.batch(1, nonce="forged"), signer=old)
    device.send(device.batch(1, nonce="true"))
    assert device.next_ack().nonce == "true"
    assert any("telemetry" in event["subject"] for event in device.view()["security"])


def test_a_replaced_certificate_is_refused_by_the_broker(fleet: FleetProcess, new_device: Any) -> None:
    """Attack: somebody copied certificate and key before they were renewed."""
    device = new_device("copied")
    device.connect(topics.Desired("copied").topic)
    key = new_key()
    copied = device.pem_file.read_bytes()
    status, body = device.renew(key)
    assert status == 200
    device.disconnect()
    device.use(certificate_in(body), key)
    assert Holder(fleet, "copied", device.certificate, key, device.folder).seen() != 403
    device.pem_file.write_bytes(copied)

    def refused() -> bool:
        try:
            device.connect()
        except (OSError, queue.Empty):  # the handshake fails, or the connection ends before anything is answered
            return True
        finally:
            device.disconnect()
        return False

    until(refused, within=40, what="the broker's refusal")
    device.use(certificate_in(body), key)
    device.connect()
    device.answer_to(device.report())


def test_a_repeated_renewal_gives_the_same_certificate(fleet: FleetProcess, tmp_path: Path) -> None:
    """Accident: the answer was lost on the way."""
    device, key = Holder.enrolled(fleet, tmp_path, "asks-twice"), new_key()
    first, second = device.renewed(key), device.renewed(key)
    assert first.certificate == second.certificate
    assert states(fleet, "asks-twice") == ["current", "next"]


def test_a_renewal_with_another_key_replaces_the_one_that_was_not_used(fleet: FleetProcess, tmp_path: Path) -> None:
    """Accident: power was lost before the new key was on the device's disk."""
    device = Holder.enrolled(fleet, tmp_path, "lost-key")
    lost, kept = device.renewed(new_key()), device.renewed(new_key())
    assert lost.seen() == 403
    assert device.seen() != 403
    assert kept.seen() != 403
    assert lost.seen() == 403
    assert states(fleet, "lost-key") == ["current"]


def test_a_device_may_keep_its_key(fleet: FleetProcess, tmp_path: Path) -> None:
    device = Holder.enrolled(fleet, tmp_path, "same-key")
    following = device.renewed(device.key)
    assert following.certificate.serial_number != device.certificate.serial_number
    assert following.seen() != 403
    assert device.seen() == 403


def test_nobody_renews_for_another_name_or_without_a_certificate(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a device asks for the certificate of its neighbour."""
    device = Holder.enrolled(fleet, tmp_path, "renews-a")
    Holder.enrolled(fleet, tmp_path, "renews-b")
    assert device.ask("renews-b", new_key(), again=True)[0] == 422
    path, body = "/.well-known/est/simplereenroll", request_for("renews-b", new_key())
    assert fleet.request("POST", path, body)[0] == 401
    assert fleet.request("POST", path, body, headers={"Authorization": f"Bearer {fleet.token}"})[0] == 401
    with pytest.raises((ssl.SSLError, OSError)):
        stranger(fleet, "renews-b", tmp_path).ask("renews-b", new_key(), again=True)


def test_a_device_that_renews_over_and_over_is_stopped(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a device fills revocation list and database with certificates."""
    device = Holder.enrolled(fleet, tmp_path, "greedy")
    for _ in range(AT_MOST - 1):
        last = device.renewed(new_key())
    assert device.ask("greedy", new_key(), again=True)[0] == 429
    assert device.renewed(last.key).certificate == last.certificate


# After the certificate ran out


def test_a_device_whose_certificate_ran_out_renews_with_its_key(short: FleetProcess, tmp_path: Path) -> None:
    device, key = expired(Holder.enrolled(short, tmp_path, "slept")), new_key()
    status, body = device.by_statement(key)
    assert status == 200, body
    # Asked again after a lost answer, by the same key: the same certificate, as long as it is good.
    assert device.by_statement(key) == (200, body)
    following = Holder(short, "slept", certificate_in(body), key, tmp_path)
    assert following.seen() != 403
    # The one that ran out is old now, and renews nothing any more.
    assert device.by_statement(new_key())[0] == 403
    expired(following)
    assert following.by_statement(new_key())[0] == 200
    assert device.by_statement(new_key())[0] == 403


def test_a_device_that_slept_through_both_certificates_renews_with_either(short: FleetProcess, tmp_path: Path) -> None:
    for name, use_next in (("both-current", False), ("both-next", True)):
        current = Holder.enrolled(short, tmp_path, name)
        following = current.renewed(new_key())
        expired(following)
        used, key = (following if use_next else current), new_key()
        status, body = used.by_statement(key)
        assert status == 200, body
        assert Holder(short, name, certificate_in(body), key, tmp_path).seen() != 403


def test_a_revoked_or_retired_device_does_not_renew_after_the_end(short: FleetProcess, tmp_path: Path) -> None:
    """Attack: a stolen device waits until its certificate ran out, and asks with its key."""
    for name, what, body in (("ran-revoked", "revoke", {"reason": "stolen"}), ("ran-retired", "retire", {"now": True})):
        device = expired(Holder.enrolled(short, tmp_path, name))
        short.api("POST", f"/api/v1/devices/{name}/{what}", body)
        assert device.by_statement(new_key())[0] == 403


def test_a_signed_request_is_believed_of_the_right_key_and_name_only(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: forged, bent and strangers' requests for renewal."""
    device = Holder.enrolled(fleet, tmp_path, "signed")
    other = Holder.enrolled(fleet, tmp_path, "signed-other")
    batch = Batch.make(fleet, tmp_path, "signed-batch")
    ca = fleet.ca_file.read_text()
    pem = other.certificate.public_bytes(Encoding.PEM).decode()
    refused: list[tuple[int, dict[str, Any]]] = [
        (422, {"signer": new_key()}),  # somebody else's signature
        (422, {"signer": other.key}),
        (422, {"certificate": pem}),  # another device's certificate, which is public
        (403, {"certificate": pem, "signer": other.key}),  # one device for another
        (400, {"request": "%%"}),
        (400, {"request": "AAAA"}),
        (400, {"certificate": "no certificate"}),
        (422, {"certificate": ca}),
        (403, {"device": "signed-other"}),
        (403, {"device": "nobody"}),
        (422, {"request": _text(request_for("signed-other", device.key))}),
    ]
    for status, bend in refused:
        said, body = device.by_statement(new_key(), **bend)
        assert said == status, (bend, body)
    assert stranger(fleet, "signed", tmp_path).by_statement(new_key())[0] == 403
    assert batch.by_statement(new_key(), device="signed")[0] == 403
    assert states(fleet, "signed") == states(fleet, "signed-other") == ["current"]
    assert device.by_statement(new_key())[0] == 200


def test_a_certificate_of_an_authority_that_was_removed_is_not_renewed(tmp_path: Path) -> None:
    """Attack: an authority was stolen and removed; what it had signed must not get a certificate of the new one."""
    now, key, lifetime = datetime.now(UTC), new_key(), timedelta(days=9)
    removed, ours = (Authority.open(tmp_path / name, now) for name in ("removed", "ours"))
    database = Database.in_folder(tmp_path)
    try:
        with database.transaction() as session:
            row = Device(id="a", profile="", created="", token_hash="", token_expires="", state="enrolled")
            certificate = Certificates(removed, lifetime, lambda: now).first(session, row, key.public_key())
        pem, request = certificate.public_bytes(Encoding.PEM).decode(), _text(request_for("a", new_key()))
        envelope = seal(Renewal(device="a", certificate=pem, request=request), CryptoSigner(key))
        for authority, renews in ((ours, False), (removed, True)):
            renewals = Renewals(database, authority, Certificates(ours, lifetime, lambda: now))
            with nullcontext() if renews else pytest.raises(Forbidden, match="not by an authority of this fleet"):
                renewals.by_statement(envelope)
    finally:
        database.close()


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"{}", 400), (b"[1]", 400), (b"\xff" * 9, 400), (b"a" * 40_000, 413)]
)
def test_what_is_no_signed_request_is_told_so(fleet: FleetProcess, body: bytes, status: int) -> None:
    assert fleet.request("POST", "/api/v1/renewals", body)[0] == status


def _text(request: bytes) -> str:
    return base64.b64encode(request).decode()


def test_no_tls_session_is_resumed(fleet: FleetProcess, tmp_path: Path) -> None:
    """Attack: a resumed session brings the certificate of its first handshake along, though it ran out meanwhile."""
    tls = Holder.enrolled(fleet, tmp_path, "resumes").tls()
    host, port = fleet.url.removeprefix("https://").split(":")

    def ask(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        with (
            socket.create_connection((host, int(port)), timeout=10) as raw,
            tls.wrap_socket(raw, server_hostname=host, session=session) as connection,
        ):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            return bool(connection.session_reused), connection.session

    reused, session = ask(None)
    assert not reused
    assert session is None or not session.has_ticket
    assert not ask(session)[0]


def test_a_request_whose_name_is_no_text_is_malformed() -> None:
    """Attack: a request in sound form, signed, with a name that does not decode."""
    key = new_key()
    request = x509.load_der_x509_csr(request_for("abc", key))
    told = request.tbs_certrequest_bytes.replace(b"\x0c\x03abc", b"\x0c\x03a\xff\xfe")
    _, algorithm = request.public_bytes(Encoding.DER).split(request.tbs_certrequest_bytes)
    signature = b"\x00" + key.sign(told, ec.ECDSA(hashes.SHA256()))
    body = told + algorithm[:12] + b"\x03" + bytes([len(signature)]) + signature
    forged = b"\x30\x81" + bytes([len(body)]) + body
    assert x509.load_der_x509_csr(forged).is_signature_valid
    with pytest.raises(Malformed, match="not a PKCS#10 request"):
        read_request(forged, "abc")


def test_every_certificate_of_a_device_is_its_own(fleet: FleetProcess, tmp_path: Path) -> None:
    """Serial numbers are what revocation goes by: no two are the same, and none is that of a neighbour's."""
    devices = [Holder.enrolled(fleet, tmp_path, f"serial-{n}") for n in range(3)]
    all_of_them = [*devices, *(d.renewed(new_key()) for d in devices)]
    assert len({h.certificate.serial_number for h in all_of_them}) == len(all_of_them)
    usages = {h.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for h in all_of_them}
    assert usages == {False}
