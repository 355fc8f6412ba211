"""Who a device is: by the keys of its certificates what it says is verified, and by them it shows itself over HTTPS.

statement = open_statement(session, row, payload, Reported)     # MQTT: signed by the current key, or by the next one
row = device_of(session, pem)                                   # HTTPS: the certificate that the connection showed

A device that renews has two certificates until the next one is seen in use: that is when it takes the place of the
current one, which is then old and good for nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, SSlibKey
from sqlmodel import Session

from fleet.errors import Forbidden, Untrusted
from fleet.store.speakers import Speaker
from fleet.store.tables import CertificateRow, Device
from fleet.trust.ca import common_name, load_certificate, serial_text
from wire.dsse import open_by_key
from wire.errors import Untrusted as WireUntrusted
from wire.messages import Statement

LISTENED: Final = frozenset({"enrolled", "retiring"})
"""States in which a device is listened to; one that is retiring still has to say that it wiped itself."""
OUT: Final = frozenset({"rejected", "retired", "revoked"})
"""States of a device that was put out: it has no right anywhere, until an operator lets its id in again."""

_ECDSA = ec.ECDSA(SHA256())
S = TypeVar("S", bound=Statement)


def keys_of(device: Device | Speaker) -> tuple[Key, ...]:
    """The public keys of a device: of its current certificate, then of the next one. Raises `Untrusted` without any."""
    certificates = [pem for pem in (device.certificate, device.next_certificate) if pem]
    if not certificates:
        raise Untrusted(f"device {device.id}: it has no certificate, so nothing that it says can be verified")
    return tuple(_key(pem) for pem in certificates)


def open_statement(session: Session, device: Device | Speaker, payload: bytes, kind: type[S]) -> S:
    """What a device says of itself, verified. One that the next key signed promotes the next certificate.

    Raises `Untrusted` for a device that is not listened to and for a statement about another one, and what
    `wire.dsse.open_by_key` raises.
    """
    if device.state not in LISTENED:
        raise Untrusted(f"{kind.__name__.lower()} of {device.id}: it is {device.state}, and not listened to")
    current, *following = keys_of(device)
    try:
        statement = open_by_key(payload, kind, current)
    except WireUntrusted:
        if not following or not isinstance(device, Device):
            raise
        statement = open_by_key(payload, kind, following[0])
        promote(session, device)
    if statement.device != device.id:
        raise Untrusted(f"{kind.__name__.lower()} of {statement.device[:63]}: sent by {device.id}")
    return statement


def device_of(session: Session, pem: str) -> Device:
    """The device whose certificate a TLS connection showed. The next certificate is promoted by being shown.

    Raises `Forbidden` for a certificate that is not the current or next one of a device that may act.
    """
    certificate = load_certificate(pem.encode())
    name = common_name(certificate.subject)
    row = session.get(CertificateRow, serial_text(certificate))
    # The serial alone is not enough: two authorities may have given the same one.
    if row is None or load_certificate(row.pem.encode()) != certificate:
        raise Forbidden(f"certificate of {name[:63]!r}: not one of a device of this fleet: enrol the device")
    if row.state not in ("current", "next"):
        raise Forbidden(
            f"certificate of {row.device}: it is {row.state}: use the newest one, or enrol the device again"
        )
    device = session.get_one(Device, row.device)
    if device.state not in LISTENED:
        raise Forbidden(f"device {device.id}: it is {device.state}: make a new kit for it to let it in again")
    if row.state == "next":
        promote(session, device)
    return device


def promote(session: Session, device: Device) -> None:
    """The next certificate was seen in use: it is the current one from now on, and the one before it is old."""
    _set_state(session, device.certificate, "old")
    _set_state(session, device.next_certificate, "current")
    device.certificate, device.next_certificate = device.next_certificate, ""
    session.add(device)


def _set_state(session: Session, pem: str, state: str) -> None:
    row = session.get_one(CertificateRow, serial_text(load_certificate(pem.encode())))
    row.state = state
    session.add(row)


class _DeviceKey(SSlibKey):
    """A key that is read from its text once, and not for every message that it signed."""

    public: ec.EllipticCurvePublicKey

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raises `UnverifiedSignatureError`."""
        try:
            self.public.verify(bytes.fromhex(signature.signature), data, _ECDSA)
        except (InvalidSignature, ValueError) as e:
            raise UnverifiedSignatureError(f"not signed by {self.keyid}") from e


@lru_cache(maxsize=20_000)
def _key(pem: str) -> Key:
    public = load_certificate(pem.encode()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)  # enrolment admits P-256 only
    read = SSlibKey.from_crypto(public)
    key = _DeviceKey(read.keyid, read.keytype, read.scheme, read.keyval)
    key.public = public
    return key
