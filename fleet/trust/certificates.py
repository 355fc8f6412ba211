"""The certificates of devices: issued, kept, replaced, revoked. Every one ever given stands in a `CertificateRow`.

A device has one current certificate and at most one next: what was issued to renew it and not yet seen in use
(`fleet.trust.identity.promote`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlmodel import Session, col, delete, func, select

from fleet.errors import TooMany
from fleet.store.tables import CertificateRow, Device
from fleet.trust.ca import Authority, load_certificate, serial_text
from wire.units import show_instant

AT_MOST: Final = 24
"""Certificates that one device may be given in `_WINDOW`, or within a lifetime if that is shorter.

Each one that is replaced stays on the revocation list until it runs out.
"""
_WINDOW: Final = timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """Issues certificates to devices and keeps them. `lifetime` is that of each."""

    authority: Authority
    lifetime: timedelta
    clock: Callable[[], datetime]

    def first(self, session: Session, device: Device, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """The certificate of a device that joins."""
        now = self.clock()
        certificate = self._sign(session, device, key, now)
        _keep(session, device, certificate, now, "current")
        device.certificate = _pem(certificate)
        return certificate

    def following(self, session: Session, device: Device, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """The next certificate of a device: for the same key the same one as long as it is good, else another.

        Raises `TooMany` for a device that asks over and over again.
        """
        if device.next_certificate:
            held = load_certificate(device.next_certificate.encode())
            if held.public_key() == key and self.clock() < held.not_valid_after_utc:
                return held
        self._check_pace(session, device)
        now = self.clock()
        certificate = self._sign(session, device, key, now)
        expect(session, device, certificate, now)
        return certificate

    def _sign(
        self, session: Session, device: Device, key: ec.EllipticCurvePublicKey, now: datetime
    ) -> x509.Certificate:
        _forget_old(session, device, now)
        return self.authority.issue_device(device.id, key, lifetime=self.lifetime, now=now)

    def _check_pace(self, session: Session, device: Device) -> None:
        window = min(_WINDOW, self.lifetime)
        since = show_instant(self.clock() - window)
        mine = select(func.count()).where(col(CertificateRow.device) == device.id, col(CertificateRow.issued) > since)
        if session.exec(mine).one() >= AT_MOST:
            raise TooMany(
                f"device {device.id}: was given {AT_MOST} certificates within {window}: it has to wait",
                retry_after=window.total_seconds() / AT_MOST,
            )


def expect(session: Session, device: Device, certificate: x509.Certificate, issued: datetime) -> None:
    """A certificate is the next one of a device from now on, in place of one that was not seen in use."""
    for row in _rows(session, device, "next"):
        row.state = "old"
        session.add(row)
    _keep(session, device, certificate, issued, "next")
    device.next_certificate = _pem(certificate)


def _keep(session: Session, device: Device, certificate: x509.Certificate, issued: datetime, state: str) -> None:
    session.add(
        CertificateRow(
            serial=serial_text(certificate),
            device=device.id,
            pem=_pem(certificate),
            issued=show_instant(issued),
            expires=show_instant(certificate.not_valid_after_utc),
            state=state,
        )
    )
    session.add(device)


def _forget_old(session: Session, device: Device, now: datetime) -> None:
    """Who could have used a replaced certificate that ran out? Nobody: it need not be known any more."""
    session.exec(
        delete(CertificateRow).where(
            col(CertificateRow.device) == device.id,
            col(CertificateRow.state) == "old",
            col(CertificateRow.expires) < show_instant(now),
        )
    )


def revoke_all(session: Session, device: Device, reason: str, now: datetime) -> None:
    """No certificate that a device was ever given is good for anything from now on."""
    for row in _rows(session, device, "current", "next"):
        row.state, row.revoked, row.reason = "revoked", show_instant(now), reason
        session.add(row)
    device.certificate = device.next_certificate = ""
    session.add(device)


def certificates_of(session: Session, device: Device) -> list[CertificateRow]:
    """Every certificate that a device was given, the newest first."""
    mine = select(CertificateRow).where(CertificateRow.device == device.id)
    return list(session.exec(mine.order_by(col(CertificateRow.issued).desc())))


def is_of(pem: str, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether a certificate is for a key; none is for any."""
    return bool(pem) and load_certificate(pem.encode()).public_key() == key


def _rows(session: Session, device: Device, *states: str) -> list[CertificateRow]:
    mine = select(CertificateRow).where(CertificateRow.device == device.id, col(CertificateRow.state).in_(states))
    return list(session.exec(mine))


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
