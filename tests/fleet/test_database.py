from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from fleet.errors import StorageFull, Unavailable
from fleet.store.database import Database
from fleet.store.tables import Device, DeviceStats, TelemetryRow


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


def test_a_migration_that_is_interrupted_leaves_nothing_and_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accident: killed between two tables."""
    made: list[str] = []

    def create_table(name: str, *columns: Any, **options: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return original(name, *columns, **options)

    original = op.create_table
    monkeypatch.setattr(op, "create_table", create_table)
    with pytest.raises(KeyboardInterrupt):
        Database.in_folder(tmp_path)
    monkeypatch.undo()
    assert made == ["device"]
    Database.in_folder(tmp_path).close()
    Database.in_folder(tmp_path).close()


def test_a_database_of_a_newer_fleet_is_told_and_not_touched(tmp_path: Path) -> None:
    Database.in_folder(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "fleet.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Unavailable, match="another version"):
        Database.in_folder(tmp_path)


def test_a_disk_without_room_is_told_as_that_and_the_next_record_fits_again(tmp_path: Path) -> None:
    """SQLite itself refuses the page: the file may not grow."""
    database = Database.in_folder(tmp_path)
    with database.transaction() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="no room left"), database.transaction() as session:
        session.add(device("a" * 100_000))
    with database.transaction() as session:
        session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages + 1000}")
        session.add(device())
    database.close()


def test_the_database_is_for_this_user_only(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path)
    with database.transaction() as session:
        session.add(device())
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("fleet.db*")} == {0o600}
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
        row = TelemetryRow(device="a", boot="b", first=1, seq=1, received="", record="{}")
        if attempt == 1:
            with database.transaction() as session:
                session.add(row)
        else:
            with pytest.raises(IntegrityError), database.transaction() as session:
                session.add(row)
    database.close()
