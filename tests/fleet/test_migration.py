"""A fleet of the version before trust and access, brought up to date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from cryptography.hazmat.primitives.serialization import Encoding
from joining import new_key
from sqlalchemy import create_engine, text
from sqlmodel import select

from fleet.errors import Forbidden
from fleet.lifecycle import revoke
from fleet.store.database import Database
from fleet.store.tables import CertificateRow, Device
from fleet.trust.ca import Authority, serial_text
from fleet.trust.identity import device_of

NOW = datetime(2026, 11, 22, tzinfo=UTC)
_NEW = (
    "INSERT INTO device (id, profile, created, token_hash, token_expires, token_used, enrolled, certificate, online,"
    " session, reported, desired_epoch, desired_seq, desired_expires, desired_models, desired_envelope)"
    " VALUES (:id, 'x86-64', '', '', '', :used, :enrolled, :pem, 0, '', '', 0, 0, '', '[]', '')"
)


def old_database(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stops at the first version."""
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _revision: upgrade(config, "0001"))
        Database.in_folder(folder).close()


def test_a_device_that_was_enrolled_before_is_known_by_its_certificate_and_can_be_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.open(tmp_path / "ca", NOW)
    certificate = authority.issue_device("a", new_key().public_key(), lifetime=timedelta(days=9), now=NOW)
    pem = certificate.public_bytes(Encoding.PEM).decode()
    old_database(tmp_path, monkeypatch)
    engine = create_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    with engine.begin() as connection:
        connection.execute(text(_NEW), {"id": "a", "used": True, "enrolled": "2026-11-22T00:00:00.000Z", "pem": pem})
        connection.execute(text(_NEW), {"id": "b", "used": False, "enrolled": None, "pem": ""})
    engine.dispose()

    database = Database.in_folder(tmp_path)
    try:
        with database.transaction() as session:
            states = {row.id: row.state for row in session.exec(select(Device))}
            assert states == {"a": "enrolled", "b": "new"}
            (row,) = session.exec(select(CertificateRow))
            assert (row.serial, row.state, row.expires) == (
                serial_text(certificate),
                "current",
                "2026-12-01T00:00:00.000Z",
            )
            assert device_of(session, pem).id == "a"
        with database.transaction() as session:
            assert revoke(session, session.get_one(Device, "a"), "stolen", NOW)
        with database.transaction() as session, pytest.raises(Forbidden, match="revoked"):
            device_of(session, pem)
    finally:
        database.close()
