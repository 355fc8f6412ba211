"""The spare: what an agent may not forget, once more in a checked file beside its database.

A file system or a memory card can take a database away, and with it the slots, the trusted metadata and the numbers
that protect against a rollback. The spare is written after every change of those, so that a database that is damaged,
gone, or older than it was, can be made again (`agent.store.database`). Telemetry and what was refused are not in it.

    seal(db)                    # in a transaction: count it, and note the sum of what it left
    write(path, db)             # after it
    Spare.read(path)            # None where there is none that is whole
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from agent.files import write_whole, writing

META: Final = ("change", "command", "desired", "enrolled", "keys", "renewed-in", "starts", "time")
"""The rows of `meta` that it holds."""
TABLES: Final = ("floors", "measuring", "models", "trust")
JUMP: Final = 1000
"""Starts that are skipped when a database is made again: reports must rise, also where the spare is a little older."""


def path_of(database: Path) -> Path:
    """Where the spare of a database stands."""
    return database.with_suffix(".spare")


@dataclass(frozen=True)
class Spare:
    """`change` counts the changes of what it holds, so that of two the newer one is known."""

    rows: dict[str, list[list[Any]]]

    @property
    def change(self) -> int:
        """How many changes there were."""
        return next((int(value) for key, value in self.rows["meta"] if key == "change"), 0)

    @property
    def version(self) -> int:
        """Schema version of the database that it was written beside."""
        return int(self.rows["version"][0][0])

    @classmethod
    def of(cls, db: sqlite3.Connection) -> Self:
        """What a database holds."""
        marks = ",".join("?" * len(META))
        found = {"meta": db.execute(f"SELECT key, value FROM meta WHERE key IN ({marks}) ORDER BY key", META)}  # noqa: S608
        found |= {table: db.execute(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}  # noqa: S608  our names
        found["version"] = db.execute("PRAGMA user_version")
        return cls({name: [[_to_json(value) for value in row] for row in rows] for name, rows in found.items()})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None where there is none, or not a whole one."""
        try:
            summed, _, content = path.read_bytes().partition(b"\n")
            if summed.decode() != _sum(content):
                return None
            return cls(json.loads(content))
        except (OSError, ValueError):
            return None

    def content(self) -> bytes:
        """The same rows give the same bytes."""
        return json.dumps(self.rows, sort_keys=True, separators=(",", ":")).encode()

    def sum(self) -> str:
        """SHA-256 of the content."""
        return _sum(self.content())

    def restore(self, db: sqlite3.Connection) -> None:
        """Fill a new database with it, in a transaction of the caller."""
        for table in ("meta", *TABLES):
            for row in self.rows[table]:
                marks = ",".join("?" * len(row))
                db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", [_from_json(v) for v in row])  # noqa: S608
        db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + ? WHERE key = 'starts'", (JUMP,))
        seal(db)


def seal(db: sqlite3.Connection) -> None:
    """Count a change, and note the sum of what is there now: a flipped bit in a row shows at the next start."""
    db.execute(
        "INSERT INTO meta VALUES ('change', 1) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
    )
    db.execute("INSERT OR REPLACE INTO meta VALUES ('sum', ?)", (Spare.of(db).sum(),))


def fault_of(db: sqlite3.Connection, beside: Spare | None) -> str:
    """Why a database that can be read must not be believed; "" when it may.

    One of an older agent has no sum. One that is older than its spare has lost what was committed.
    """
    noted = db.execute("SELECT value FROM meta WHERE key = 'sum'").fetchone()
    held = Spare.of(db)
    if noted is not None and noted[0] != held.sum():
        return "what is in it was changed"
    if beside is not None and beside.change > held.change:
        return "it is older than its spare"
    return ""


def write(database: Path, db: sqlite3.Connection) -> None:
    """Write the spare of a database. Raises `Unavailable`."""
    content = Spare.of(db).content()
    with writing(database):
        write_whole(path_of(database), _sum(content).encode() + b"\n" + content)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _to_json(value: object) -> object:
    return {"b": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _from_json(value: Any) -> Any:
    return base64.b64decode(value["b"]) if isinstance(value, dict) else value
