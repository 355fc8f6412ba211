"""Many rows at once, whether they are there already or not: the same words for SQLite and PostgreSQL.

upsert(session, EvidenceWindow, [{"subject": 1, ...}, ...])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel


def upsert(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or put their values in the place of those of their primary key. All name the same columns."""
    if not rows:
        return
    connection = session.connection()
    made = table.__table__  # type: ignore[attr-defined]
    keys = [column.name for column in made.primary_key]
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(made)
    values = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=values), rows)
