"""A fleet of the version before trust and access, brought up to date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from cryptography.hazmat.primitives.serialization import Encoding
from joining import new_key
from sqlalchemy import create_engine, text
from sqlmodel import select

import fleet
from fleet.errors import Forbidden
from fleet.lifecycle import revoke
from fleet.seen import Seen
from fleet.store.database import Database
from fleet.store.evidence_tables import SeenRow
from fleet.store.tables import CertificateRow, Device
from fleet.trust.ca import Authority, serial_text
from fleet.trust.identity import device_of

NOW = datetime(2026, 11, 22, tzinfo=UTC)
_NEW = (
    "INSERT INTO device (id, profile, created, token_hash, token_expires, token_used, enrolled, certificate, online,"
    " session, reported, desired_epoch, desired_seq, desired_expires, desired_models, desired_envelope)"
    " VALUES (:id, 'x86-64', '', '', '', :used, :enrolled, :pem, 0, '', '', 0, 0, '', '[]', '')"
)


def old_database(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "0001") -> None:
    """A database that stops at an old version."""
    with monkeypatch.context() as patch:
        upgrade = command.upgrade
        patch.setattr(command, "upgrade", lambda config, _revision: upgrade(config, version))
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


def test_no_migration_uses_code_that_changes() -> None:
    """Accident: a later change to what a migration imports breaks the way from every older version."""
    found = list((Path(fleet.__file__).parent / "migrations" / "versions").glob("*.py"))
    assert len(found) > 10
    pattern = re.compile(r"^\s*(from|import) (fleet|wire|agent|compiler|cli)\b", re.MULTILINE)
    assert [path.name for path in found if pattern.search(path.read_text())] == []


def test_what_was_stored_of_telemetry_is_known_after_the_raw_records_may_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_database(tmp_path, monkeypatch, "0010")
    engine = create_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    with engine.begin() as connection:
        connection.execute(text(_NEW), {"id": "a", "used": True, "enrolled": "2026-11-22T00:00:00.000Z", "pem": ""})
        columns = {row.name: row for row in connection.execute(text("PRAGMA table_info(telemetry)"))}
        given = {"device": "a", "boot": "b", "received": "2026-11-22T00:00:00.000Z"}
        for seq in range(30):
            values = {**given, "id": seq + 1, "stream": "health" if seq == 7 else "é", "first": 3 * seq + 1}
            values["seq"] = 3 * seq + 2
            values |= {name: "" for name, row in columns.items() if row.notnull and name not in values}
            names = ", ".join(f'"{name}"' for name in values)
            marks = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO telemetry ({names}) VALUES ({marks})"), values)
    engine.dispose()
    database = Database.in_folder(tmp_path)
    try:
        with database.transaction() as session:
            (row,) = session.exec(select(SeenRow))
    finally:
        database.close()
    expected = Seen()
    for seq in range(30):
        expected.add("health" if seq == 7 else "é", 3 * seq + 1, 3 * seq + 2)
    assert Seen.from_text(row.streams) == expected
    assert expected.streams["é"].upto == 14, "more than are known one by one"
    assert row.day == NOW.timestamp() // 86_400
