"""Certificates that a restored fleet does not know, because it issued them after its backup: taken in when shown.

adopt(session, authority, certificate, now)      # before `fleet.trust.identity.device_of` looks for it

A device that renewed after the backup was made signs with a key that the fleet has forgotten. What counts is that our
own authority signed the certificate, for a device that was enrolled when the backup was made, between backup and
restore. It is believed once: from then on it is known, in whatever state. A fleet that was never restored takes in
none, and nobody gets in whose id was put out, or let in again, after the restore.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from sqlmodel import Session, col, select

from fleet import devices
from fleet.store.restores import Restore, restores
from fleet.store.tables import CertificateRow, Device
from fleet.trust.ca import Authority, common_name, serial_text
from fleet.trust.certificates import expect
from fleet.trust.identity import LISTENED
from fleet.trust.issuer import issued
from wire.units import instant, show_instant

SUBJECT: Final = "certificate"
"""What the security event of an adoption is about."""
_SECOND: Final = timedelta(seconds=1)
"""What a certificate's dates are exact to."""
_log = logging.getLogger(__name__)


def adopt(session: Session, authority: Authority, certificate: x509.Certificate, now: datetime) -> bool:
    """Make a certificate the next one of its device, if a restore is why it is not known. Whether it was one.

    The caller has proof that who shows it has its key.
    """
    if session.get(CertificateRow, serial_text(certificate)) is not None:
        return False
    restore = next((one for one in restores(session) if _forgot(one, certificate)), None)
    device = session.get(Device, common_name(certificate.subject))
    if restore is None or device is None or authority.issuer_of(certificate) is None:
        return False
    if not _was_in(device, restore) or not _is_of_a_device(certificate) or _has_newer(session, certificate, restore):
        return False
    expect(session, device, certificate, issued(certificate))
    _tell(session, device, certificate, restore, now)
    return True


def _forgot(restore: Restore, certificate: x509.Certificate) -> bool:
    return restore.made - _SECOND < issued(certificate) < restore.at


def _was_in(device: Device, restore: Restore) -> bool:
    """Its enrolment is that of the backup: one that was let in again since gave all it had before away."""
    return device.state in LISTENED and device.enrolled is not None and instant(device.enrolled) <= restore.made


def _is_of_a_device(certificate: x509.Certificate) -> bool:
    """Not the claim of a batch, whose subject says more than a name."""
    return len(list(certificate.subject)) == 1


def _has_newer(session: Session, certificate: x509.Certificate, restore: Restore) -> bool:
    """Whether one is known that replaced it: a copy of an old key must not come before the device.

    What it was given since the restore does not count: that may have gone to such a copy.
    """
    newer = select(CertificateRow).where(
        CertificateRow.device == common_name(certificate.subject),
        col(CertificateRow.issued) >= show_instant(issued(certificate) + _SECOND),
        col(CertificateRow.issued) < show_instant(restore.at),
    )
    return session.exec(newer).first() is not None


def _tell(session: Session, device: Device, certificate: x509.Certificate, restore: Restore, now: datetime) -> None:
    reason = (
        f"taken in: {serial_text(certificate)} of {show_instant(issued(certificate))}, which this fleet does not know: "
        f"it was restored {show_instant(restore.at)} from a backup of {show_instant(restore.made)}; if the device was "
        "revoked between the two, revoke it again"
    )
    _log.warning("device %s: certificate %s", device.id, reason)
    devices.record_refusal(session, device.id, SUBJECT, reason, now)
