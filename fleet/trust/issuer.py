"""One certificate authority: a P-256 key and the certificate that it vouches with, and all that it signs.

issuer = Issuer.new(now)
issuer.issue("kitchen-1", public_key, usage=CLIENT, lifetime=timedelta(days=365), now=now)
issuer.revocation_list([certificate.serial_number], now)

Signs only: files are the matter of `fleet.trust.ca`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
CLAIM_UNIT = "claim"
"""Organizational unit of a batch's claim certificate, which is good for asking for admission and nothing else."""
_SKEW = timedelta(hours=1)
"""Certificates start this much earlier, for clocks that are a little behind."""
_CROSSED = 3
"""How many authorities may follow one: a device that slept through as many changes still reaches the newest."""


@dataclass(frozen=True)
class Issuer:
    """An authority that this fleet holds the key of."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, now: datetime, after: datetime | None = None) -> Issuer:
        """A new one with a key of its own. Its first valid second is above `after`: so their order can be seen."""
        begins = max(now - _SKEW, after + timedelta(seconds=1)) if after else now - _SKEW
        key = ec.generate_private_key(ec.SECP256R1())
        # The number in the name keeps two fleets apart on one person's machine, and two authorities of one fleet.
        subject = _name(f"Shoal fleet {x509.random_serial_number() % 16**8:08x}")
        builder = _builder(subject, subject, key.public_key(), begins, now + AUTHORITY_LIFETIME)
        return cls(key, _as_authority(builder, key.public_key()).sign(key, hashes.SHA256()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hexadecimal."""
        return fingerprint(self.certificate)

    @property
    def pem(self) -> str:
        """The certificate as PEM."""
        return to_pem(self.certificate).decode()

    def issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        *,
        usage: x509.ObjectIdentifier,
        lifetime: timedelta,
        now: datetime,
        names: x509.SubjectAlternativeName | None = None,
        unit: str | None = None,
    ) -> x509.Certificate:
        """A certificate that vouches for nobody else."""
        builder = (
            _builder(_name(name, unit), self.certificate.subject, key, now - _SKEW, now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(self._key_identifier, critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def cross(self, successor: x509.Certificate, now: datetime) -> x509.Certificate:
        """The successor's name and key, vouched for by this authority: who believes this one believes that one."""
        key = successor.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # authorities are made by `new`
        ends = min(successor.not_valid_after_utc, self.certificate.not_valid_after_utc)
        builder = _builder(successor.subject, self.certificate.subject, key, now - _SKEW, ends)
        builder = _as_authority(builder, key, crossed=_CROSSED - 1).add_extension(self._key_identifier, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def revocation_list(self, serials: Iterable[int], at: datetime) -> bytes:
        """A revocation list as PEM. `at` must rise from list to list: of two, a broker heeds the newer.

        It is good for as long as the authority: an expired one would lock every device out.
        """
        one = x509.RevokedCertificateBuilder().revocation_date(at)
        rows = [one.serial_number(serial).build() for serial in serials]
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=rows)  # one by one is quadratic
            .issuer_name(self.certificate.subject)
            .last_update(at)
            .next_update(max(self.certificate.not_valid_after_utc, at + AUTHORITY_LIFETIME))
            .add_extension(self._key_identifier, critical=False)
            .add_extension(x509.CRLNumber(max(0, int(at.timestamp()))), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @property
    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def issued(certificate: x509.Certificate) -> datetime:
    """When `Issuer.issue` made a certificate, to the second: its own dates begin earlier."""
    return certificate.not_valid_before_utc + _SKEW


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def to_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted: it belongs into a file of mode 0600."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(begins).not_valid_after(ends)


def _as_authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, crossed: int = _CROSSED
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=crossed), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


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


def _name(common: str, unit: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])
