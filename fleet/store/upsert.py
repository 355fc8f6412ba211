"""Many rows at once, whether they are there already or not: the same words for SQLite and PostgreSQL.

    upsert(session, EvidenceWindow, [{"subject": 1, ...}, ...])
    append(session, TelemetryRow, [{"device": "kitchen-1", ...}, ...])     # rows that are new

The words are made once, and the values go to the driver as they are, texts, numbers and bytes: what SQLAlchemy does for
each value of each row was a quarter of what it takes to store a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ValuesBase
from sqlmodel import Session, SQLModel

Row = Mapping[str, Any]


def upsert(session: Session, table: type[SQLModel], rows: Sequence[Row]) -> None:
    """Insert rows, or put their values in the place of those of their primary key. All name the same columns."""
    if rows:
        connection = session.connection()
        send(connection, *_upsert(connection.dialect, table, tuple(rows[0])), rows)


def append(session: Session, table: type[SQLModel], rows: Sequence[Row]) -> None:
    """Insert rows. All name the same columns."""
    if rows:
        connection = session.connection()
        send(connection, *_insert(connection.dialect, table, tuple(rows[0])), rows)


def send(connection: Connection, words: str, order: Sequence[str] | None, rows: Sequence[Row]) -> None:
    """Rows to the driver: by place in `order`, or by name."""
    connection.exec_driver_sql(words, [tuple(row[name] for name in order) for row in rows] if order else list(rows))


def worded(statement: ValuesBase, names: Sequence[str], dialect: Dialect) -> tuple[str, Sequence[str] | None]:
    """A statement in the words of a database, and the order in which it takes its values; None: by their names."""
    made: Any = statement.compile(dialect=dialect, column_keys=list(names))
    return str(made), made.positiontup


@lru_cache
def _upsert(dialect: Dialect, table: type[SQLModel], names: tuple[str, ...]) -> tuple[str, Sequence[str] | None]:
    made = table.__table__  # type: ignore[attr-defined]
    keys = [column.name for column in made.primary_key]
    insert = (postgresql if dialect.name == "postgresql" else sqlite).insert(made)
    values = {name: insert.excluded[name] for name in names if name not in keys}
    return worded(insert.on_conflict_do_update(index_elements=keys, set_=values), names, dialect)


@lru_cache
def _insert(dialect: Dialect, table: type[SQLModel], names: tuple[str, ...]) -> tuple[str, Sequence[str] | None]:
    made = table.__table__  # type: ignore[attr-defined]
    return worded((postgresql if dialect.name == "postgresql" else sqlite).insert(made), names, dialect)
