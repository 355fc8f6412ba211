"""How a device gets in: a kit with a token that works once, then a certificate for the key it made itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlmodel import Session

from fleet import profiles
from fleet.errors import Conflict, Unauthorized
from fleet.store.database import Database
from fleet.store.files import write
from fleet.store.tables import Device, DeviceStats
from fleet.trust.ca import Authority, load_certificate, read_request
from fleet.trust.desired import DesiredStates
from wire.document import check_device
from wire.messages import EnrolmentKit
from wire.profile import Profile
from wire.units import instant, show_instant


@dataclass(frozen=True)
class Addresses:
    """Where devices find the fleet: an HTTPS address, and host and port of the broker."""

    fleet: str
    broker: str


@dataclass(frozen=True)
class Enrolment:
    """Makes kits and certificates. `secret` derives tokens, so that a repeated request gives the same kit."""

    database: Database
    authority: Authority
    desired: DesiredStates
    addresses: Addresses
    secret: bytes
    kit_lifetime: timedelta
    certificate_lifetime: timedelta
    clock: Callable[[], datetime]

    def kit(self, device: str, profile: str, trust: Mapping[str, str], request_key: str | None) -> EnrolmentKit:
        """A kit for a new device, or a new one for a device that did not enrol before its kit expired.

        Raises wire's `Malformed`, `NotFound` for the profile, `Conflict` for a taken id.
        """
        check_device(device, "device")
        known = profiles.load(profile)
        token = self._token(device, request_key or secrets.token_urlsafe())
        with self.database.transaction() as session:
            row = session.get(Device, device)
            if row is None:
                row = self._add(session, device, profile, token, request_key)
            elif row.enrolled is None and self.clock() >= instant(row.token_expires):
                self._renew(row, profile, token, request_key)
            elif not _repeats(row, profile, token):
                raise Conflict(f"device {device}: this id is taken: choose another one")
        return self._kit(row, token, known, trust)

    def enrol(self, device: str, token: str, request: bytes) -> bytes:
        """The certificate in DER for a certificate request in DER. Raises `Unauthorized`, `Malformed` or `Untrusted`.

        The token is used up in the transaction that stores the certificate: from then on it admits that key alone, so
        a device whose answer was lost on the way asks again and gets the same certificate.
        """
        now = self.clock()
        with self.database.transaction() as session:
            row = session.get(Device, device)
            if row is None or not hmac.compare_digest(row.token_hash, hash_token(token)):
                raise Unauthorized(f"enrolment of {device[:63]!r}: unknown device or wrong token: use its own kit")
            if now >= instant(row.token_expires):
                raise Unauthorized(
                    f"enrolment of {device}: the token expired {row.token_expires}: make a new kit for it"
                )
            key = read_request(request, device)
            if row.certificate and _is_of(row.certificate, key):
                return load_certificate(row.certificate.encode()).public_bytes(Encoding.DER)
            if row.token_used:
                raise Unauthorized(f"enrolment of {device}: this token was used: make a new kit for another id")
            lifetime = self.certificate_lifetime
            certificate = self.authority.issue_device(device, key, lifetime=lifetime, now=now)
            row.token_used, row.enrolled = True, show_instant(now)
            row.certificate = certificate.public_bytes(Encoding.PEM).decode()
            self.desired.assign(session, row, ())
        return certificate.public_bytes(Encoding.DER)

    def _token(self, device: str, request_key: str) -> str:
        return hmac.digest(self.secret, f"{device}\n{request_key}".encode(), "sha256").hex()

    def _add(self, session: Session, device: str, profile: str, token: str, request_key: str | None) -> Device:
        now = self.clock()
        row = Device(
            id=device,
            profile=profile,
            created=show_instant(now),
            request_key=request_key,
            token_hash=hash_token(token),
            token_expires=show_instant(now + self.kit_lifetime),
        )
        session.add(row)
        session.flush()
        session.add(DeviceStats(device=device))
        return row

    def _renew(self, row: Device, profile: str, token: str, request_key: str | None) -> None:
        row.profile, row.request_key, row.token_hash = profile, request_key, hash_token(token)
        row.token_expires = show_instant(self.clock() + self.kit_lifetime)

    def _kit(self, row: Device, token: str, profile: Profile, trust: Mapping[str, str]) -> EnrolmentKit:
        return EnrolmentKit(
            device=row.id,
            token=token,
            expires=row.token_expires,
            fleet=self.addresses.fleet,
            broker=self.addresses.broker,
            ca=self.authority.pem,
            trust=trust,
            profile=profile,
        )


def _repeats(row: Device, profile: str, token: str) -> bool:
    """The same request again, its first answer lost on the way."""
    return row.request_key is not None and row.profile == profile and row.token_hash == hash_token(token)


def _is_of(certificate: str, key: ec.EllipticCurvePublicKey) -> bool:
    return load_certificate(certificate.encode()).public_key() == key


def hash_token(token: str) -> str:
    """What the database keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def open_secret(path: Path) -> bytes:
    """32 random bytes in a file that only this user may read, made on first use."""
    if not path.exists():
        write(path, secrets.token_bytes(32))
    return path.read_bytes()
