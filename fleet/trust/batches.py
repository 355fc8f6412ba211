"""How a batch of devices gets in: one claim certificate for all, which does nothing but ask for admission.

Each device names itself, and waits as `pending` until an operator accepts it. The first key that comes with an id is
that device's; nobody takes its place while it waits. A claim certificate is no device: broker, gateway and renewal
refuse it.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlmodel import Session, col, func, select

from fleet import devices, profiles
from fleet.errors import AnotherKey, Conflict, Forbidden, Malformed, NotFound, Unauthorized
from fleet.store.tables import ClaimRow, Device
from fleet.trust.ca import Authority, common_name, load_certificate, read_request, serial_text
from fleet.trust.certificates import is_of
from fleet.trust.enrolment import SUBJECT, Enrolment, check_not_a_batch, new_row
from fleet.trust.identity import OUT
from wire.document import check_device, check_name
from wire.kit import Claim, EnrolmentKit
from wire.units import instant, show_instant

MAX_QUOTA: Final = 100_000
MAX_LIFETIME: Final = timedelta(days=365)
_TOLD: Final = timedelta(days=30)
"""How long the certificate outlives its claim: a device that comes late is told so, instead of a broken handshake.

Those that came in time get their answer then.
"""
_ORDER: Final = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
"""Of the group P-256 (SEC 2, section 2.4.2)."""


@dataclass(frozen=True)
class BatchRequest:
    """A batch that an operator asks for. `key` is the idempotency key of the request."""

    batch: str
    profile: str
    group: str
    quota: int
    lifetime: timedelta
    key: str | None = None


@dataclass(frozen=True)
class Admission:
    """What a device of a batch gets: its certificate, or None as long as it waits. `news`: it had not asked before."""

    device: str
    certificate: x509.Certificate | None
    news: bool


@dataclass(frozen=True)
class Batches:
    """Makes claims, and takes in who comes with one."""

    enrolment: Enrolment
    authority: Authority

    def kit(self, session: Session, asked: BatchRequest, trust: Mapping[str, str]) -> EnrolmentKit:
        """The kit of a new batch. Its key is in the kit only: it is derived again for a request that is repeated.

        Raises wire's `Malformed`, `NotFound` for the profile, `Conflict` for a taken name.
        """
        _check(asked)
        profile = profiles.load(asked.profile)
        key = self._key(asked.batch, asked.key or secrets.token_urlsafe())
        row = self._row(session, asked, key)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        claim = Claim(batch=row.batch, certificate=row.certificate, key=private)
        return self.enrolment.kits.make(row.created, row.expires, profile, trust, claim=claim)

    def admit(self, pem: str, request: bytes) -> Admission:
        """What comes of a device's request for admission. `pem` is what the connection showed.

        Raises `Unauthorized` without a claim, `Forbidden` when quota, time or an operator say no, `AnotherKey` for an
        id that belongs to somebody else, `Malformed` and `Untrusted` for the certificate request.
        """
        device, clock = _requested_name(request), self.enrolment.clock
        with (
            devices.alarmed(self.enrolment.database, device, SUBJECT, clock),
            self.enrolment.database.transaction() as session,
        ):
            claim = _claim_of(session, pem)
            key = read_request(request, device)
            row = session.get(Device, device)
            if row is None:
                self._take_in(session, claim, device, request)
                return Admission(device, None, news=True)
            return Admission(device, _known(row, claim, key), news=False)

    def _take_in(self, session: Session, claim: ClaimRow, device: str, request: bytes) -> None:
        now = self.enrolment.clock()
        check_device(device, "device")
        check_not_a_batch(session, device)
        if now >= instant(claim.expires):
            raise Forbidden(f"enrolment of {device}: batch {claim.batch} took in devices until {claim.expires}")
        if _taken_in(session, claim.batch) >= claim.quota:
            raise Forbidden(f"enrolment of {device}: batch {claim.batch} has taken in the {claim.quota} of its quota")
        row = new_row(session, device, now)
        row.state, row.batch, row.request = "pending", claim.batch, base64.b64encode(request).decode()
        row.profile, row.group = claim.profile, claim.group
        session.add(row)

    def _key(self, batch: str, request_key: str) -> ec.EllipticCurvePrivateKey:
        # 64 bytes for a number of 32: what the remainder favours is beyond measure (FIPS 186-5, A.2.1).
        number = int.from_bytes(hmac.digest(self.enrolment.secret, f"claim\n{batch}\n{request_key}".encode(), "sha512"))
        return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())

    def _row(self, session: Session, asked: BatchRequest, key: ec.EllipticCurvePrivateKey) -> ClaimRow:
        row = session.get(ClaimRow, asked.batch)
        if row is not None:
            if not (_repeats(row, asked) and is_of(row.certificate, key.public_key())):
                raise Conflict(f"batch {asked.batch}: there is one of this name: choose another one")
            return row
        if session.get(Device, asked.batch) is not None:
            raise Conflict(f"batch {asked.batch}: a device has this name: choose another one")
        now = self.enrolment.clock()
        lifetime = asked.lifetime + _TOLD
        certificate = self.authority.issue_claim(asked.batch, key.public_key(), lifetime=lifetime, now=now)
        row = ClaimRow(
            batch=asked.batch,
            profile=asked.profile,
            group=asked.group,
            quota=asked.quota,
            created=show_instant(now),
            expires=show_instant(now + asked.lifetime),
            serial=serial_text(certificate),
            certificate=certificate.public_bytes(Encoding.PEM).decode(),
            request_key=asked.key,
        )
        session.add(row)
        return row


def find(session: Session, batch: str) -> ClaimRow:
    """A batch. Raises `NotFound`."""
    row = session.get(ClaimRow, batch)
    if row is None:
        raise NotFound(f"batch {batch[:63]!r}: there is none of that name: `shoal device list` shows those there are")
    return row


def revoke(session: Session, row: ClaimRow, now: str) -> None:
    """Nobody gets in with this claim any more; who is in stays in."""
    row.revoked = row.revoked or now
    session.add(row)


def all_batches(session: Session) -> list[ClaimRow]:
    """Every batch, by name."""
    return list(session.exec(select(ClaimRow).order_by(col(ClaimRow.batch))))


def view(session: Session, row: ClaimRow) -> dict[str, Any]:
    """A batch as the API shows it."""
    names = ("batch", "profile", "group", "quota", "created", "expires", "revoked")
    return {**{name: getattr(row, name) for name in names}, "devices": _taken_in(session, row.batch)}


def _taken_in(session: Session, batch: str) -> int:
    """Every id that was ever pending: one that was turned away does not make room for another guess."""
    return session.exec(select(func.count()).where(col(Device.batch) == batch)).one()


def _claim_of(session: Session, pem: str) -> ClaimRow:
    certificate = load_certificate(pem.encode())
    row = session.exec(select(ClaimRow).where(ClaimRow.serial == serial_text(certificate))).first()
    if row is None or load_certificate(row.certificate.encode()) != certificate:
        raise Unauthorized(
            f"certificate of {common_name(certificate.subject)[:63]!r}: not a claim of this fleet: use the token of a "
            "kit or the claim of a batch; a device that has a certificate renews it at simplereenroll"
        )
    if row.revoked is not None:
        raise Forbidden(f"batch {row.batch}: its claim was revoked {row.revoked}: use another kit")
    return row


def _known(row: Device, claim: ClaimRow, key: ec.EllipticCurvePublicKey) -> x509.Certificate | None:
    """What somebody gets who comes with the id of a device that is known."""
    if row.batch != claim.batch or row.state == "new":
        raise AnotherKey(f"enrolment of {row.id}: batch {claim.batch} asked for the id of a device that is not its own")
    if row.state == "pending" and read_request(base64.b64decode(row.request), row.id) == key:
        return None
    if row.state in OUT:
        raise Forbidden(f"enrolment of {row.id}: it is {row.state}: an operator has to let it in again")
    if not is_of(row.certificate, key):
        raise AnotherKey(f"enrolment of {row.id}: it is {row.state} with another key: choose another id")
    return load_certificate(row.certificate.encode())


def _requested_name(request: bytes) -> str:
    try:
        return common_name(x509.load_der_x509_csr(request).subject)
    except ValueError as e:
        raise Malformed(f"certificate request: not a PKCS#10 request in DER: {e}") from e


def _check(asked: BatchRequest) -> None:
    check_device(asked.batch, "batch")
    check_name(asked.group, "group")
    if not 1 <= asked.quota <= MAX_QUOTA:
        raise Malformed(f"batch {asked.batch}: quota {asked.quota}: expected 1 to {MAX_QUOTA}")
    if not timedelta(seconds=1) <= asked.lifetime <= MAX_LIFETIME:
        raise Malformed(f"batch {asked.batch}: expected a lifetime of 1 s to {MAX_LIFETIME.days} d")


def _repeats(row: ClaimRow, asked: BatchRequest) -> bool:
    """The same request again, its first answer lost on the way."""
    lifetime = instant(row.expires) - instant(row.created)
    held = (row.profile, row.group, row.quota, row.request_key, lifetime)
    return asked.key is not None and held == (asked.profile, asked.group, asked.quota, asked.key, asked.lifetime)
