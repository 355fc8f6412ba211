"""The fleet's own certificate authority: one P-256 key, made on first start, vouches for server, fleet and devices.

authority = Authority.open(data / "ca", now)
authority.issue_device("kitchen-1", public_key, lifetime=timedelta(days=365), now=now)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.errors import Malformed, Untrusted
from fleet.store.files import private_folder, write

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)
_SKEW = timedelta(hours=1)
"""Certificates start this much earlier, for clocks that are a little behind."""


@dataclass(frozen=True)
class KeyPair:
    """Paths of a PEM certificate and its PEM key."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates. The key never leaves the folder, which only this user may read."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.folder = folder
        self.certificate = certificate
        self.certificate_path = folder / "ca.pem"
        self._key = key

    @classmethod
    def open(cls, folder: Path, now: datetime) -> Authority:
        """Load the authority of a folder, or make it there."""
        private_folder(folder)
        if not (folder / "ca.pem").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _self_signed(key, now)
            write(folder / "ca.key", _key_pem(key))
            write(folder / "ca.pem", _pem(certificate), mode=0o644)
        key, certificate = load_key(folder / "ca.key"), _load_own(folder / "ca.pem")
        if key.public_key() != certificate.public_key():
            raise Malformed(f"{folder}: ca.key is not the key of ca.pem: put both back from one backup")
        return cls(folder, key, certificate)

    @property
    def pem(self) -> str:
        """The authority's certificate as PEM."""
        return _pem(self.certificate).decode()

    def server(self, names: Sequence[str], now: datetime) -> KeyPair:
        """The certificate of HTTPS port and broker, made again for other names or when a third of its life is left."""
        pair = KeyPair(self.folder / "server.pem", self.folder / "server.key")
        wanted = x509.SubjectAlternativeName([_general_name(n) for n in dict.fromkeys(names)])
        if not (pair.certificate.exists() and _still_serves(pair, wanted, now)):
            key = ec.generate_private_key(ec.SECP256R1())
            usage = ExtendedKeyUsageOID.SERVER_AUTH
            certificate = self._issue("shoal fleet", key.public_key(), usage, SERVER_LIFETIME, now, wanted)
            _write_pair(pair, certificate, key)
        return pair

    def client(self, name: str, now: datetime) -> KeyPair:
        """A client certificate of the fleet itself, made again at every start."""
        pair = KeyPair(self.folder / "client.pem", self.folder / "client.key")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(name, key.public_key(), ExtendedKeyUsageOID.CLIENT_AUTH, SERVER_LIFETIME, now)
        _write_pair(pair, certificate, key)
        return pair

    def issue_device(
        self, device: str, key: ec.EllipticCurvePublicKey, *, lifetime: timedelta, now: datetime
    ) -> x509.Certificate:
        """A device's certificate: its common name is the device id."""
        return self._issue(device, key, ExtendedKeyUsageOID.CLIENT_AUTH, lifetime, now)

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        usage: x509.ObjectIdentifier,
        lifetime: timedelta,
        now: datetime,
        names: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(_name(name), self.certificate.subject, key, now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def read_request(data: bytes, device: str) -> ec.EllipticCurvePublicKey:
    """The key of a PKCS#10 request in DER. Raises `Malformed`, and `Untrusted` for another name or a bad signature."""
    try:
        request = x509.load_der_x509_csr(data)
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as e:
        raise Malformed(f"certificate request of {device}: not a PKCS#10 request in DER: {e}") from e
    if not signed:
        raise Untrusted(f"certificate request of {device}: not signed by the key it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Malformed(f"certificate request of {device}: expected a P-256 key: make the key with curve prime256v1")
    if common_name(request.subject) != device:
        raise Untrusted(f"certificate request of {device}: its common name is not {device!r}")
    return key


def common_name(name: x509.Name) -> str:
    """The one common name of a subject, or an empty text."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def load_certificate(pem: bytes) -> x509.Certificate:
    """A certificate from PEM. Raises `Malformed`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as e:
        raise Malformed(f"certificate: not PEM: {e}") from e


def _load_own(path: Path) -> x509.Certificate:
    try:
        return load_certificate(path.read_bytes())
    except Malformed as e:
        raise Malformed(f"{path}: {e}: put the fleet's own file back from a backup") from e


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from a PEM file. Raises `Malformed`."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except ValueError as e:
        raise Malformed(f"{path}: not a PEM key: put the fleet's own file back from a backup") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Malformed(f"{path}: not a P-256 key: put the fleet's own file back from a backup")
    return key


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The serial in the name keeps two fleets apart on one person's machine.
    subject = _name(f"Shoal fleet {x509.random_serial_number() % 16**8:08x}")
    return (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _SKEW).not_valid_after(now + lifetime)


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _still_serves(pair: KeyPair, wanted: x509.SubjectAlternativeName, now: datetime) -> bool:
    certificate = _load_own(pair.certificate)
    if load_key(pair.key).public_key() != certificate.public_key():
        return False  # a start was killed between the two files
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names == wanted and certificate.not_valid_after_utc - now > SERVER_LIFETIME / 3


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _write_pair(pair: KeyPair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    write(pair.key, _key_pem(key))
    write(pair.certificate, _pem(certificate), mode=0o644)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
