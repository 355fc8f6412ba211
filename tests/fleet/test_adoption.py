"""What a restored fleet takes in of the certificates that it has forgotten, and what it never does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from joining import new_key, request_for
from securesystemslib.signer import CryptoSigner
from sqlmodel import select

from fleet.api.policy import POLICY
from fleet.errors import Forbidden
from fleet.store.database import Database
from fleet.store.restores import Restore, note_restore
from fleet.store.tables import CertificateRow, Device, DeviceStats, SecurityRow
from fleet.trust.adoption import adopt
from fleet.trust.ca import Authority, serial_text
from fleet.trust.certificates import Certificates, revoke_all
from fleet.trust.identity import device_of, promote
from fleet.trust.renewal import Renewals
from wire.dsse import seal
from wire.messages import Renewal
from wire.units import show_instant

LIFE = timedelta(days=9)
NOW = datetime.now(UTC)
ENROLLED, MADE, LOST, AT = (NOW - timedelta(hours=hours) for hours in (9, 6, 5, 3))
"""The device enrolled, the backup was made, the device renewed, and the fleet was restored."""


@dataclass
class Fleet:
    """The restored fleet: one device in it, with the certificate that it had when the backup was made."""

    database: Database
    authority: Authority

    def enrol(self, device: str, at: datetime = ENROLLED) -> x509.Certificate:
        with self.database.transaction() as session:
            row = Device(id=device, profile="", created="", token_hash="", token_expires="", state="enrolled")
            row.enrolled = show_instant(at)
            session.add(row)
            session.flush()
            session.add(DeviceStats(device=device))
            return Certificates(self.authority, LIFE, lambda: at).first(session, row, new_key().public_key())

    def issued(
        self, at: datetime, device: str = "a", key: ec.EllipticCurvePrivateKey | None = None
    ) -> x509.Certificate:
        """One that the database does not know."""
        public = (key or new_key()).public_key()
        return self.authority.issue_device(device, public, lifetime=LIFE, now=at)

    def restored(self, made: datetime = MADE, at: datetime = AT) -> None:
        with self.database.transaction() as session:
            note_restore(session, Restore(made, at))

    def shown(self, certificate: x509.Certificate) -> bool:
        """Whether a device gets in that shows this to renew it."""
        with self.database.transaction() as session:
            adopt(session, self.authority, certificate, NOW)
        try:
            with self.database.transaction() as session:
                device_of(session, certificate.public_bytes(Encoding.PEM).decode())
        except Forbidden:
            return False
        return True

    def state(self, certificate: x509.Certificate) -> str:
        with self.database.transaction() as session:
            row = session.get(CertificateRow, serial_text(certificate))
            return row.state if row else "unknown"

    def events(self) -> list[str]:
        with self.database.transaction() as session:
            return [row.reason for row in session.exec(select(SecurityRow))]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    database = Database.in_folder(tmp_path)
    yield Fleet(database, Authority.open(tmp_path / "ca", NOW - timedelta(days=1)))
    database.close()


def test_a_certificate_that_was_issued_between_backup_and_restore_takes_the_place_of_the_known_one(
    fleet: Fleet,
) -> None:
    known, forgotten = fleet.enrol("a"), fleet.issued(LOST)
    fleet.restored()
    assert fleet.shown(forgotten)
    assert (fleet.state(known), fleet.state(forgotten)) == ("old", "current")
    assert fleet.shown(forgotten)
    (event,) = fleet.events()
    assert serial_text(forgotten) in event
    assert "revoke it again" in event


def test_a_fleet_that_was_never_restored_takes_in_nothing(fleet: Fleet) -> None:
    """Attack: somebody who had the authority's key for a moment made certificates."""
    fleet.enrol("a")
    assert not fleet.shown(fleet.issued(LOST))
    assert fleet.events() == []


@pytest.mark.parametrize("at", [MADE - timedelta(seconds=2), AT + timedelta(seconds=1), NOW])
def test_what_was_issued_before_the_backup_or_after_the_restore_is_not_forgotten_but_strange(
    fleet: Fleet, at: datetime
) -> None:
    """Attack: the old fleet goes on, or its key was stolen with it, and certificates of the restored one are made."""
    fleet.enrol("a")
    fleet.restored()
    assert not fleet.shown(fleet.issued(at))
    assert fleet.shown(fleet.issued(MADE)), "in the very second of the backup it may be missing"


def test_a_second_restore_does_not_hide_the_first(fleet: Fleet) -> None:
    """Accident: a device sleeps through two restores."""
    fleet.enrol("a")
    fleet.restored()
    fleet.restored(NOW - timedelta(hours=2), NOW - timedelta(hours=1))
    assert fleet.shown(fleet.issued(LOST))


@pytest.mark.parametrize("state", ["rejected", "retired", "revoked", "pending", "new"])
def test_a_device_that_is_not_in_does_not_get_in(fleet: Fleet, state: str) -> None:
    """Attack: a device that was put out shows a certificate that nobody could revoke."""
    fleet.enrol("a")
    fleet.restored()
    with fleet.database.transaction() as session:
        session.get_one(Device, "a").state = state
    forgotten = fleet.issued(LOST)
    assert not fleet.shown(forgotten)
    assert fleet.state(forgotten) == "unknown", "it would count as soon as the device is let in again"


def test_one_that_was_put_out_and_let_in_again_does_not_come_with_what_it_had_before(fleet: Fleet) -> None:
    """Attack: a stolen device was revoked after the restore, and its id given to another one."""
    fleet.enrol("a", at=AT + timedelta(hours=1))
    fleet.restored()
    assert not fleet.shown(fleet.issued(LOST))


@pytest.mark.parametrize("state", ["old", "revoked"])
def test_a_certificate_that_is_known_is_what_it_is(fleet: Fleet, state: str) -> None:
    """Attack: a replaced or revoked certificate from between backup and restore is shown again."""
    fleet.enrol("a")
    fleet.restored()
    forgotten = fleet.issued(LOST)
    assert fleet.shown(forgotten)
    with fleet.database.transaction() as session:
        device = session.get_one(Device, "a")
        if state == "old":
            Certificates(fleet.authority, LIFE, lambda: NOW).following(session, device, new_key().public_key())
            promote(session, device)
        else:
            revoke_all(session, device, "stolen", NOW)
    assert fleet.state(forgotten) == state
    assert not fleet.shown(forgotten)
    assert len(fleet.events()) == 1


def test_the_newest_of_two_forgotten_ones_counts_whatever_came_first(fleet: Fleet) -> None:
    """Attack: a copy of a key that the device has replaced since, all of it forgotten, comes before the device."""
    fleet.enrol("a")
    fleet.restored()
    copied, newest = fleet.issued(LOST), fleet.issued(LOST + timedelta(minutes=5))
    assert fleet.shown(copied)
    with fleet.database.transaction() as session:
        device = session.get_one(Device, "a")
        got = Certificates(fleet.authority, LIFE, lambda: NOW).following(session, device, new_key().public_key())
        promote(session, device)
    assert fleet.shown(newest)
    assert (fleet.state(copied), fleet.state(got)) == ("old", "old")
    assert not fleet.shown(fleet.issued(LOST + timedelta(minutes=1)))


def test_neither_another_authority_nor_a_claim_nor_a_stranger_is_taken_for_a_device(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Attack: certificates in a device's name that are not its own."""
    fleet.enrol("a")
    fleet.restored()
    other = Authority.open(tmp_path / "other", NOW - timedelta(days=1))
    key = new_key().public_key()
    assert not fleet.shown(other.issue_device("a", key, lifetime=LIFE, now=LOST))
    assert not fleet.shown(fleet.authority.issue_claim("a", key, lifetime=LIFE, now=LOST))
    assert not fleet.shown(fleet.issued(LOST, "nobody"))
    assert fleet.events() == []


def test_a_forgotten_certificate_that_ran_out_meanwhile_renews_by_a_signed_request(fleet: Fleet) -> None:
    """Accident: after the restore the device is off until its certificate has run out."""
    fleet.enrol("a")
    key = new_key()
    forgotten = fleet.issued(LOST, key=key)
    later = NOW + LIFE
    renewals = Renewals(fleet.database, fleet.authority, Certificates(fleet.authority, LIFE, lambda: later))
    request = base64.b64encode(request_for("a", new_key())).decode()
    statement = Renewal(device="a", certificate=forgotten.public_bytes(Encoding.PEM).decode(), request=request)
    envelope = seal(statement, CryptoSigner(key))
    with pytest.raises(Forbidden, match="not one of a device of this fleet"):
        renewals.by_statement(envelope)
    fleet.restored()
    assert fleet.state(renewals.by_statement(envelope)) == "next"
    assert fleet.state(forgotten) == "current"


def test_only_a_request_to_renew_takes_a_certificate_in() -> None:
    assert [row for row, rule in POLICY.items() if rule.adopts] == [("POST", "/.well-known/est/simplereenroll")]
