"""Devices that join: kits, batches, certificate requests, and what a certificate and its key can be used for.

batch = Batch.make(fleet, tmp_path, "spring", quota=2)
status, _ = batch.ask("spring-1", new_key())          # 202: it waits
fleet.api("POST", "/api/v1/devices/spring-1/accept", {})
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
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
from fleet_process import FleetProcess
from securesystemslib.signer import CryptoSigner

from wire.dsse import seal
from wire.kit import EnrolmentKit
from wire.messages import Renewal

EST = "/.well-known/est"


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key as devices have it."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request_for(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS#10 request in DER."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def certificate_in(body: bytes) -> x509.Certificate:
    """The one certificate of an EST answer."""
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body, validate=True))
    return certificate


def kit_for(fleet: FleetProcess, device: str, *, group: str = "default", **headers: str) -> EnrolmentKit:
    """The kit of one device."""
    body = {"device": device, "profile": "x86-64", "group": group}
    return EnrolmentKit.from_value(fleet.api("POST", "/api/v1/devices", body, headers=headers))


def enrol(fleet: FleetProcess, device: str, token: str, key: ec.EllipticCurvePrivateKey) -> tuple[int, bytes]:
    """Simpleenroll with a token."""
    basic = base64.b64encode(f"{device}:{token}".encode()).decode()
    body = base64.b64encode(request_for(device, key))
    return fleet.request("POST", f"{EST}/simpleenroll", body, headers={"Authorization": f"Basic {basic}"})


@dataclass
class Holder:
    """Somebody with a certificate and its key."""

    fleet: FleetProcess
    name: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    folder: Path

    @classmethod
    def enrolled(cls, fleet: FleetProcess, folder: Path, device: str) -> Self:
        """A device that joined with a kit of its own."""
        key = new_key()
        status, body = enrol(fleet, device, kit_for(fleet, device).token or "", key)
        assert status == 200, body
        return cls(fleet, device, certificate_in(body), key, folder)

    @property
    def file(self) -> Path:
        """Certificate and key as PEM."""
        path = self.folder / f"{self.name}-{self.certificate.serial_number:x}.pem"
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM) + key_pem(self.key))
        return path

    def tls(self) -> ssl.SSLContext:
        """A context that shows the certificate."""
        context = self.fleet.tls()
        context.load_cert_chain(self.file)
        return context

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """A request over mutual TLS."""
        return self.fleet.request("POST", path, body, tls=self.tls())

    def ask(self, name: str, key: ec.EllipticCurvePrivateKey, *, again: bool = False) -> tuple[int, bytes]:
        """Simpleenroll, or simplereenroll, with the certificate."""
        return self.post(f"{EST}/simple{'re' * again}enroll", base64.b64encode(request_for(name, key)))

    def renewed(self, key: ec.EllipticCurvePrivateKey) -> Holder:
        """The same device with the next certificate."""
        status, body = self.ask(self.name, key, again=True)
        assert status == 200, body
        return Holder(self.fleet, self.name, certificate_in(body), key, self.folder)

    def seen(self) -> int:
        """Use the certificate: the status of a request to the gateway, 403 when it is good for nothing.

        There is no cloud tier here: one whose certificate is taken hears that with another status.
        """
        return self.fleet.request("GET", "/v1/models", tls=self.tls())[0]

    def by_statement(self, key: ec.EllipticCurvePrivateKey, **bend: Any) -> tuple[int, bytes]:
        """Renewal without TLS client certificate; `bend` changes the statement, or its `signer`."""
        signer = bend.pop("signer", self.key)
        values = {
            "device": self.name,
            "certificate": self.certificate.public_bytes(Encoding.PEM).decode(),
            "request": base64.b64encode(request_for(self.name, key)).decode(),
        }
        envelope = seal(Renewal(**{**values, **bend}), CryptoSigner(signer))
        return self.fleet.request("POST", "/api/v1/renewals", envelope)


@dataclass
class Batch(Holder):
    """A batch: whoever has its kit."""

    kit: EnrolmentKit

    @classmethod
    def make(cls, fleet: FleetProcess, folder: Path, name: str, **changes: Any) -> Self:
        """A new batch; `changes` to what is asked for."""
        body = {"batch": name, "profile": "x86-64", "quota": 2, **changes}
        return cls.of(fleet, folder, EnrolmentKit.from_value(fleet.api("POST", "/api/v1/batches", body)))

    @classmethod
    def of(cls, fleet: FleetProcess, folder: Path, kit: EnrolmentKit) -> Self:
        """The claim of a kit."""
        assert kit.claim is not None
        certificate = x509.load_pem_x509_certificate(kit.claim.certificate.encode())
        key = _load(kit.claim.key)
        return cls(fleet, kit.claim.batch, certificate, key, folder, kit)


def _load(pem: str) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def stranger(fleet: FleetProcess, name: str, folder: Path) -> Holder:
    """Somebody with a certificate of an authority of their own for the name of a device."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = x509.load_pem_x509_certificate(fleet.ca_file.read_bytes()).not_valid_before_utc
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    certificate = builder.not_valid_before(now).not_valid_after(now + timedelta(days=9)).sign(key, hashes.SHA256())
    return Holder(fleet, name, certificate, key, folder)
