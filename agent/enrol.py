"""Enrolment: a kit and a one-time token in, an identity in the state folder out (EST, RFC 7030).

The key is made here and never leaves. Everything that can fail without the network is done before the token is spent,
and the identity appears in one rename: an enrolment that was killed can be run again with the same key.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs7,
)
from cryptography.x509.oid import NameOID

from agent.blobs import sync_folder
from agent.errors import AgentError, Malformed, Unavailable, Untrusted
from agent.identity import FOLDER, Joined, check_certificate, fleet_context, host_and_port
from agent.state import StateFile
from wire.document import parse_json
from wire.errors import WireError
from wire.messages import EnrolmentKit
from wire.trust import TrustedSet

TIMEOUT: Final = 20.0
ANSWER_LIMIT: Final = 256 * 1024
STATE_FILE: Final = "agent.db"


def enrol(kit_file: Path, state: Path) -> Joined:
    """Make this machine the device of the kit. Raises `AgentError`, or `WireError` for a bad kit."""
    kit = read_kit(kit_file)
    if (state / FOLDER).exists():
        raise Malformed(f"{state}: a device is enrolled here already: choose another --state, or remove this folder")
    trust = trust_of(kit)
    with _disk(state):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        save_trust(state, trust)
        key = device_key(state / "key.pem")
    certificate = ask_certificate(kit, key)
    check_answer(certificate, kit, key)
    with _disk(state):
        store_identity(state, kit, certificate)
    return joined(kit)


@contextmanager
def _disk(state: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise Unavailable(f"{e.filename or state}: not written: {e.strerror}: choose another --state") from e


def read_kit(path: Path) -> EnrolmentKit:
    """Parse the kit and everything in it that has a form."""
    try:
        kit = EnrolmentKit.from_bytes(path.read_bytes())
    except OSError as e:
        raise Malformed(f"{path}: the enrolment kit cannot be read: {e.strerror}") from e
    except WireError as e:
        raise Malformed(f"{path}: not an enrolment kit: {e}") from e
    if urlsplit(kit.fleet).scheme != "https":
        raise Malformed(f"{path}: fleet {kit.fleet[:200]!r} is not an https address")
    host_and_port(kit.broker, f"{path}: broker")
    return kit


def joined(kit: EnrolmentKit) -> Joined:
    """What is kept of a kit."""
    return Joined(device=kit.device, fleet=kit.fleet, broker=kit.broker, profile=kit.profile)


def trust_of(kit: EnrolmentKit) -> TrustedSet:
    """The kit's metadata, verified from its oldest root on. A brand-new device is as fresh as its kit."""
    documents = {name: text.encode() for name, text in kit.trust.items()}
    versions = [int(n.removeprefix("root/")) for n in documents if n.startswith("root/") and n[5:].isdigit()]
    if not versions:
        raise Malformed("enrolment kit: no root metadata in it: make a new kit after shoal release init")
    trust = TrustedSet.from_root(documents[f"root/{min(versions)}"])
    for refusal in trust.offer(documents, datetime.now(UTC)):
        raise Untrusted(f"enrolment kit: {refusal.document}: {refusal.error}: make a new kit")
    return trust


def save_trust(state: Path, trust: TrustedSet) -> None:
    """The first content of the agent's state file."""
    file = StateFile.open(state / STATE_FILE)
    try:
        file.save_trust(trust.documents)
    finally:
        file.close()


def device_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key of an enrolment that was begun here, or a new one (P-256, mode 0600)."""
    if path.exists():
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except ValueError:
            path.unlink()  # torn by a crash before anything was signed with it
            return device_key(path)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(path, pem)
    sync_folder(path.parent)  # the token admits this key alone: it must be there after a power cut
    return key


def ask_certificate(kit: EnrolmentKit, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """EST simpleenroll: spends the token."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, kit.device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    secret = base64.b64encode(f"{kit.device}:{kit.token}".encode()).decode()
    headers = {
        "Authorization": f"Basic {secret}",
        "Content-Type": "application/pkcs10",
        "Content-Transfer-Encoding": "base64",
    }
    body = base64.b64encode(request.public_bytes(Encoding.DER))
    answer = post(kit, "/.well-known/est/simpleenroll", body, headers)
    try:
        (certificate, *_) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer))
    except (ValueError, binascii.Error) as e:
        raise Unavailable(f"{kit.fleet}: its answer to the enrolment is not a PKCS#7 certificate: {e}") from e
    return certificate


def post(kit: EnrolmentKit, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One request to the fleet, believed by the kit's CA only. Raises `Untrusted`, `Unavailable`."""
    parts = urlsplit(kit.fleet)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port or 443, timeout=TIMEOUT, context=fleet_context(kit.ca)
    )
    try:
        connection.connect()
        check_certificate(connection.sock, datetime.now(UTC))
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        data = response.read(ANSWER_LIMIT)
    except (OSError, http.client.HTTPException) as e:
        raise Unavailable(f"{kit.fleet}: enrolment not answered ({e}): is the fleet up, and the kit its own?") from e
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _refused(kit, response.status, data)
    return data


def _refused(kit: EnrolmentKit, status: int, data: bytes) -> AgentError:
    try:
        said = parse_json(data, what="answer", limit=ANSWER_LIMIT)["error"]["message"]
    except (WireError, KeyError, TypeError):
        said = f"status {status}"
    if status in (401, 403):
        return Untrusted(f"{kit.fleet} refused the token of {kit.device}: {said}: make a new kit")
    return Unavailable(f"{kit.fleet} did not enrol {kit.device}: {said}")


def check_answer(certificate: x509.Certificate, kit: EnrolmentKit, key: ec.EllipticCurvePrivateKey) -> None:
    """The certificate is for our key and name, and by the kit's CA. Raises `Untrusted`."""
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if certificate.public_key() != key.public_key() or names != [kit.device]:
        raise Untrusted(f"{kit.fleet} sent a certificate for another key or device ({', '.join(names)})")
    if not any(_issued(certificate, ca) for ca in x509.load_pem_x509_certificates(kit.ca.encode())):
        raise Untrusted(f"{kit.fleet} sent a certificate that the kit's CA did not sign")


def _issued(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def store_identity(state: Path, kit: EnrolmentKit, certificate: x509.Certificate) -> None:
    """The whole identity in one rename."""
    new = state / f"{FOLDER}.new"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    _write(new / "cert.pem", certificate.public_bytes(Encoding.PEM))
    _write(new / "ca.pem", kit.ca.encode())
    _write(new / "device.json", joined(kit).to_bytes())
    _write(new / "key.pem", (state / "key.pem").read_bytes())
    sync_folder(new)
    new.rename(state / FOLDER)
    (state / "key.pem").unlink()
    sync_folder(state)


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
