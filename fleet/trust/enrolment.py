"""How a device gets in: a kit with a token that works once, then a certificate for the key it made itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlmodel import Session

from fleet import devices, profiles
from fleet.errors import AnotherKey, Conflict, Unauthorized
from fleet.store.database import Database
from fleet.store.files import write
from fleet.store.tables import ClaimRow, Device, DeviceStats
from fleet.trust.ca import Authority, load_certificate, read_request
from fleet.trust.certificates import Certificates, is_of
from fleet.trust.desired import DesiredStates
from fleet.trust.identity import OUT
from wire.document import check_device, check_name
from wire.kit import Claim, EnrolmentKit
from wire.profile import Profile
from wire.units import instant, show_instant

SUBJECT = "enrolment"
"""What a security event of enrolment is about."""


@dataclass(frozen=True)
class Addresses:
    """Where devices find the fleet: an HTTPS address, and host and port of the broker."""

    fleet: str
    broker: str


@dataclass(frozen=True)
class KitRequest:
    """A kit that an operator asks for. `key` is the idempotency key of the request."""

    device: str
    profile: str
    group: str = "default"
    key: str | None = None


@dataclass(frozen=True)
class KitMaker:
    """Puts together what every kit has. Its CA are all authorities that devices may meet."""

    authority: Authority
    addresses: Addresses

    def make(
        self,
        issued: str,
        expires: str,
        profile: Profile,
        trust: Mapping[str, str],
        *,
        device: str | None = None,
        token: str | None = None,
        claim: Claim | None = None,
    ) -> EnrolmentKit:
        """A kit with either device and token, or a claim."""
        return EnrolmentKit(
            device=device,
            token=token,
            claim=claim,
            issued=issued,
            expires=expires,
            fleet=self.addresses.fleet,
            broker=self.addresses.broker,
            ca="".join(self.authority.pems()),
            trust=trust,
            profile=profile,
        )


@dataclass(frozen=True)
class Enrolment:
    """Makes kits and admits their devices. `secret` derives tokens, so that a repeated request gives the same kit."""

    database: Database
    kits: KitMaker
    certificates: Certificates
    desired: DesiredStates
    secret: bytes
    kit_lifetime: timedelta
    clock: Callable[[], datetime]

    def kit(self, session: Session, asked: KitRequest, trust: Mapping[str, str]) -> EnrolmentKit:
        """A kit for a new device, for one that did not enrol before its kit expired, or for one that is out.

        Raises wire's `Malformed`, `NotFound` for the profile, `Conflict` for a taken id.
        """
        check_device(asked.device, "device")
        check_name(asked.group, "group")
        profile = profiles.load(asked.profile)
        row, token = self._row(session, asked)
        return self.kits.make(show_instant(self.clock()), row.token_expires, profile, trust, device=row.id, token=token)

    def enrol(self, device: str, token: str, request: bytes) -> x509.Certificate:
        """The certificate for a certificate request in DER. Raises `Unauthorized`, `AnotherKey`, `Malformed`, ...

        The token is used up in the transaction that stores the certificate: from then on it admits that key alone, so
        a device whose answer was lost on the way asks again and gets the same certificate.
        """
        with devices.alarmed(self.database, device, SUBJECT, self.clock), self.database.transaction() as session:
            row = self._holder(session, device, token)
            key = read_request(request, device)
            if is_of(row.certificate, key):
                return load_certificate(row.certificate.encode())
            if row.token_used:
                raise AnotherKey(
                    f"enrolment of {device}: its token was used, with another key: if that was not this device, "
                    "revoke it and make a new kit"
                )
            row.token_used = True
            return self.admit(session, row, key)

    def admit(self, session: Session, row: Device, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """A device is in: its first certificate, and a desired state that names nothing yet."""
        row.state, row.enrolled = "enrolled", show_instant(self.clock())
        certificate = self.certificates.first(session, row, key)
        self.desired.assign(session, row, ())
        return certificate

    def _holder(self, session: Session, device: str, token: str) -> Device:
        """The device that a token is for."""
        row = session.get(Device, device)
        if row is None or not hmac.compare_digest(row.token_hash, hash_token(token)):
            raise Unauthorized(f"enrolment of {device[:63]!r}: unknown device or wrong token: use its own kit")
        if row.state not in ("new", "enrolled"):
            raise Unauthorized(f"enrolment of {device}: it is {row.state}, and its kit void: make a new kit for it")
        if self.clock() >= instant(row.token_expires):
            raise Unauthorized(f"enrolment of {device}: the token expired {row.token_expires}: make a new kit for it")
        return row

    def _token(self, asked: KitRequest, expires: str) -> str:
        """Another one for each kit, even of one idempotency key: a kit that was revoked must not come back to life."""
        text = f"{asked.device}\n{expires}\n{asked.key or secrets.token_urlsafe()}"
        return hmac.digest(self.secret, text.encode(), "sha256").hex()

    def _row(self, session: Session, asked: KitRequest) -> tuple[Device, str]:
        row = session.get(Device, asked.device)
        if row is None:
            check_not_a_batch(session, asked.device)
            row = new_row(session, asked.device, self.clock())
        elif row.state in OUT:
            start_again(row)
        elif row.state == "new" and self.clock() >= instant(row.token_expires):
            pass  # nobody came: a new kit takes the place of the old one
        elif _repeats(row, asked, token := self._token(asked, row.token_expires)):
            return row, token
        else:
            raise Conflict(
                f"device {asked.device}: this id is taken ({row.state}): choose another one, or revoke it before"
            )
        row.profile, row.group, row.request_key = asked.profile, asked.group, asked.key
        row.token_expires = show_instant(self.clock() + self.kit_lifetime)
        token = self._token(asked, row.token_expires)
        row.token_hash, row.token_used = hash_token(token), False
        session.add(row)
        return row, token


def new_row(session: Session, device: str, now: datetime) -> Device:
    """A device that nothing is known of. The caller fills in how it may enrol."""
    stamp = show_instant(now)
    row = Device(id=device, profile="", created=stamp, token_hash="", token_expires=stamp)
    session.add(row)
    session.flush()
    session.add(DeviceStats(device=device))
    return row


def start_again(row: Device) -> None:
    """Forget a device's former life. What the fleet counts goes on rising: its old orders must never be new again.

    An agent that enrols again starts its own counters anew.
    """
    row.state, row.enrolled, row.request = "new", None, ""
    row.batch_starts = row.batch_sent = 0
    row.reported = row.sealing_key = row.session = ""
    row.online, row.gone, row.last_seen = False, None, None


def check_not_a_batch(session: Session, name: str) -> None:
    """Raises `Conflict` for a batch's name: on the broker a claim certificate's name is that of its batch."""
    if session.get(ClaimRow, name) is not None:
        raise Conflict(f"device {name}: a batch has this name: choose another id")


def _repeats(row: Device, asked: KitRequest, token: str) -> bool:
    """The same request again, its first answer lost on the way."""
    same = (row.profile, row.group, row.token_hash) == (asked.profile, asked.group, hash_token(token))
    return asked.key is not None and same


def hash_token(token: str) -> str:
    """What the database keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def open_secret(path: Path) -> bytes:
    """32 random bytes in a file that only this user may read, made on first use."""
    if not path.exists():
        write(path, secrets.token_bytes(32))
    return path.read_bytes()
