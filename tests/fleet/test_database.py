from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from fleet.database import Database
from fleet.errors import Unavailable
from fleet.tables import Device, DeviceStats, TelemetryRow


def device(id_: str = "a") -> Device:
    return Device(id=id_, profile="x86-64", created="", token_hash="", token_expires="")


def test_the_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    Database.in_folder(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_opening_again_keeps_what_was_stored(tmp_path: Path) -> None:
    for expected in (None, "a"):
        database = Database.in_folder(tmp_path)
        with database.transaction() as session:
            found = session.get(Device, "a")
            assert (found.id if found else None) == expected
            session.merge(device())
        database.close()


def test_a_block_that_raises_stores_nothing(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    with pytest.raises(IntegrityError), database.transaction() as session:
        session.add_all([device(), DeviceStats(device="nobody")])
    with database.transaction() as session:
        assert session.get(Device, "a") is None
    database.close()


def test_a_file_that_is_no_database_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(Unavailable, match=r"fleet\.db: .*backup"):
        Database.in_folder(tmp_path)


def test_the_database_itself_keeps_a_record_from_standing_twice(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    with database.transaction() as session:
        session.add(device())
        session.flush()
        session.add(DeviceStats(device="a"))
    for attempt in (1, 2):
        row = TelemetryRow(device="a", boot="b", seq=1, received="", record="{}")
        if attempt == 1:
            with database.transaction() as session:
                session.add(row)
        else:
            with pytest.raises(IntegrityError), database.transaction() as session:
                session.add(row)
    database.close()
