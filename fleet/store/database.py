"""The fleet's database: SQLite today, and nothing here that only SQLite has outside `_tune_sqlite`.

with database.transaction() as session:
    session.add(Device(...))
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlmodel import Session

from fleet.errors import StorageFull, Unavailable


class Database:
    """An engine with its schema brought up to date. The caller holds the lock of the data folder meanwhile.

    Raises `Unavailable` when the file is damaged.
    """

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _tune_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        try:
            _migrate(self._engine)
        except OperationalError as e:
            self._engine.dispose()
            raise _translated(e) from e
        except DatabaseError as e:
            self._engine.dispose()
            raise Unavailable(f"{url}: cannot be opened: {e.orig}: put the file back from a backup") from e
        except CommandError as e:
            self._engine.dispose()
            raise Unavailable(f"{url}: written by another version of the fleet: {e}: start that version") from e

    @classmethod
    def in_folder(cls, data: Path) -> Database:
        """The database of a data folder, made on first use, for this user only: SQLite's other files follow it."""
        path = data / "fleet.db"
        path.touch(mode=0o600)
        path.chmod(0o600)
        return cls(f"sqlite:///{path}")

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits when the block ends well and rolls back when it raises.

        Raises `StorageFull` when the disk has no room, and `Unavailable` when the file cannot be used.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                yield session
        except OperationalError as e:
            raise _translated(e) from e

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def _translated(error: OperationalError) -> Unavailable:
    if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFull("database: no room left on the disk: nothing was stored: free some")
    return Unavailable(
        f"database: {error.orig}: look at fleet.db in the data folder and its disk, or put it back from a backup"
    )


def _begin_sqlite(connection: Connection) -> None:
    """Begin in so many words: Python's driver does not before DDL, and half a migration would stay."""
    connection.exec_driver_sql("BEGIN")


def _tune_sqlite(connection: Any, _record: object) -> None:
    """WAL with FULL: an acknowledged record survives a power cut, and readers do not wait for the writer."""
    connection.isolation_level = None
    with closing(connection.cursor()) as cursor:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")


def _migrate(engine: Engine) -> None:
    with as_file(files("fleet") / "migrations") as scripts, engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
