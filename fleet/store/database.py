"""The fleet's database: SQLite in the data folder, or PostgreSQL: the same tables, migrations and words.

    with closing(open_database(settings.data, settings.database, settings.database_password_file)) as database:
        with database.transaction() as session:
            session.add(Device(...))

Only `_tune_sqlite`, `_begin_sqlite`, `_postgres` and `fleet.store.upsert` know which it is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlmodel import Session

from fleet.errors import StorageFull, Unavailable
from fleet.store.files import write

POSTGRES: Final = "postgresql://"
_ELSEWHERE: Final = "database"
"""File in the data folder that says where the database is, when it is not there."""
_DISK_FULL: Final = "53100"
_MIGRATING: Final = 0x53484F41
"""Number of the lock that a migration holds."""


class Database:
    """An engine with its schema brought up to date. The caller holds the lock of the data folder meanwhile.

    Raises `Unavailable` when the file is damaged, or PostgreSQL does not answer.
    """

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        if url.startswith(POSTGRES):
            self._engine = _postgres(url, password_file)
        else:
            self._engine = create_engine(url)
            event.listen(self._engine, "connect", _tune_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        try:
            _migrate(self._engine)
        except OperationalError as e:
            self._engine.dispose()
            raise _translated(e) from e
        except DatabaseError as e:
            self._engine.dispose()
            raise Unavailable(f"{url}: cannot be opened: {e.orig}: put it back from a backup") from e
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

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def open_database(data: Path, url: str = "", password_file: Path | None = None) -> Database:
    """The database of a fleet. Where it is stands in the data folder too, for what is done without the settings."""
    note = data / _ELSEWHERE
    if not url:
        note.unlink(missing_ok=True)
        return Database.in_folder(data)
    write(note, json.dumps({"url": url, "password_file": str(password_file or "")}).encode() + b"\n")
    return Database(url, password_file)


def elsewhere(data: Path) -> tuple[str, Path | None] | None:
    """Address and password file of the PostgreSQL database of the fleet in a folder; None when it uses SQLite."""
    try:
        value = json.loads((data / _ELSEWHERE).read_text())
    except FileNotFoundError:
        return None
    return value["url"], Path(value["password_file"]) if value["password_file"] else None


def _postgres(url: str, password_file: Path | None) -> Engine:
    """Connections are looked at before they are used: a server that was restarted costs nothing but the moment."""
    try:
        engine = create_engine(url.replace(POSTGRES, "postgresql+psycopg://", 1), pool_pre_ping=True)
    except ModuleNotFoundError as e:
        raise Unavailable(
            f"database: the package {e.name} is missing: install the extra for it: pip install 'shoal[postgres]'"
        ) from e
    if password_file is not None:

        @event.listens_for(engine, "do_connect")
        def _(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["password"] = password_file.read_text().strip()

    return engine


def _translated(error: OperationalError) -> Unavailable:
    sqlite_full = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if sqlite_full or getattr(error.orig, "sqlstate", None) == _DISK_FULL:
        return StorageFull("database: no room left on the disk: nothing was stored: free some")
    if not isinstance(error.orig, sqlite3.Error):
        return Unavailable(f"database: {str(error.orig).strip()}: look whether PostgreSQL runs and lets the fleet in")
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
        if engine.dialect.name == "postgresql":  # of two fleets that start at once, one waits here for the other
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
        command.upgrade(config, "head")
