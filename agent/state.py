"""What an agent remembers: one SQLite file in its state folder.

Write-ahead log with `synchronous=FULL`: measured with the power cut, what was committed is there (NORMAL lost it).
Things that belong together change in one transaction. Every method is one short transaction on the caller's thread.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from agent.errors import Unavailable
from agent.update import ModelState
from wire.messages import SecurityEvent
from wire.units import instant, show_instant

SCHEMA_VERSION: Final = 1
SECURITY_KEPT: Final = 50
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trust (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE models (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE telemetry (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, record BLOB NOT NULL,
                        UNIQUE (boot, seq)) STRICT;
CREATE TABLE security (id INTEGER PRIMARY KEY, at TEXT NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class Queued:
    """A telemetry record that waits, as its document's bytes."""

    boot: str
    seq: int
    record: bytes


class StateFile:
    """The open file. Raises `Unavailable` when the disk does not do its part."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open, or make when absent. Raises `Unavailable` for a file that is corrupt or of a newer agent."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its log the same mode
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        except (OSError, sqlite3.Error) as e:
            raise Unavailable(f"{path}: the agent's state cannot be opened ({e}): {_WAY_OUT}") from e
        try:
            _prepare(connection, path)
        except sqlite3.Error as e:
            connection.close()
            raise Unavailable(f"{path}: the agent's state is damaged ({e}): {_WAY_OUT}") from e
        except Unavailable:
            connection.close()
            raise
        return cls(connection, path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise Unavailable(f"{self._path}: not written ({e}): make room on the disk, or check it") from e

    def _rows(self, sql: str, *values: object) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise Unavailable(f"{self._path}: not read ({e}): {_WAY_OUT}") from e

    def _meta(self, key: str, default: str) -> str:
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else default

    # --- trust and models -------------------------------------------------------------------------------------

    def trust_documents(self) -> dict[str, bytes]:
        """The signed metadata that was trusted, by name."""
        return dict(self._rows("SELECT name, document FROM trust"))

    def save_trust(self, documents: Mapping[str, bytes]) -> None:
        """Replace the trusted metadata as a whole."""
        with self._transaction() as db:
            db.execute("DELETE FROM trust")
            db.executemany("INSERT INTO trust VALUES (?, ?)", documents.items())

    def last_desired(self) -> tuple[int, int]:
        """Epoch and seq of the newest desired state acted on; (0, 0) before the first."""
        epoch, seq = self._meta("desired", "0.0").split(".")
        return int(epoch), int(seq)

    def models(self) -> dict[str, ModelState]:
        """Every model by name."""
        return {name: ModelState.from_bytes(data) for name, data in self._rows("SELECT name, document FROM models")}

    def accept_desired(self, last: tuple[int, int], models: Mapping[str, ModelState]) -> None:
        """A desired state is acted on from here: its number and what it makes of every model, at once."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('desired', ?)", (f"{last[0]}.{last[1]}",))
            db.execute("DELETE FROM models")
            db.executemany("INSERT INTO models VALUES (?, ?)", [(n, m.to_bytes()) for n, m in models.items()])

    def save_model(self, name: str, model: ModelState) -> None:
        """One step of an update: slots and intent together."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, model.to_bytes()))

    # --- time and security ------------------------------------------------------------------------------------

    def newest_time(self) -> datetime:
        """The newest time that the fleet has signed, or 1970: trusted time is never below it."""
        return instant(self._meta("time", "1970-01-01T00:00:00Z"))

    def note_time(self, when: datetime) -> None:
        """Remember a signed time if it is newer."""
        if when > self.newest_time():
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (show_instant(when),))

    def note_security(self, event: SecurityEvent) -> None:
        """Remember what was refused; the newest `SECURITY_KEPT` stay."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO security (at, subject, reason) VALUES (?, ?, ?)",
                (event.at, event.subject[:200], event.reason[:400]),
            )
            db.execute("DELETE FROM security WHERE id <= (SELECT MAX(id) FROM security) - ?", (SECURITY_KEPT,))

    def security(self) -> tuple[SecurityEvent, ...]:
        """What was refused, oldest first."""
        rows = self._rows("SELECT at, subject, reason FROM security ORDER BY id")
        return tuple(SecurityEvent(at=at, subject=subject, reason=reason) for at, subject, reason in rows)

    # --- telemetry --------------------------------------------------------------------------------------------

    def queue(self, new: Queued, limit: int) -> None:
        """Add a record; while all of them take more than `limit` bytes the oldest goes, and is counted."""
        with self._transaction() as db:
            db.execute("INSERT INTO telemetry (boot, seq, record) VALUES (?, ?, ?)", (new.boot, new.seq, new.record))
            total, dropped = db.execute("SELECT SUM(LENGTH(record)) FROM telemetry").fetchone()[0], 0
            oldest = (
                db.execute("SELECT id, LENGTH(record) FROM telemetry ORDER BY id").fetchall() if total > limit else []
            )
            for key, length in oldest[:-1]:
                if total <= limit:
                    break
                db.execute("DELETE FROM telemetry WHERE id = ?", (key,))
                total, dropped = total - length, dropped + 1
            _count(db, "produced", 1)
            _count(db, "dropped", dropped)

    def oldest(self, limit: int) -> Sequence[Queued]:
        """The oldest records of one boot that fit in `limit` bytes; at least one when any waits."""
        rows = self._rows(
            "SELECT boot, seq, record FROM telemetry"
            " WHERE boot = (SELECT boot FROM telemetry ORDER BY id LIMIT 1) ORDER BY id LIMIT 256"
        )
        batch: list[Queued] = []
        for queued in (Queued(*row) for row in rows):
            limit -= len(queued.record)
            if batch and limit < 0:
                break
            batch.append(queued)
        return batch

    def acknowledged(self, boot: str, stored: int) -> None:
        """The fleet holds the records of a boot up to and including `stored`: forget them."""
        with self._transaction() as db:
            gone = db.execute("DELETE FROM telemetry WHERE boot = ? AND seq <= ?", (boot, stored)).rowcount
            _count(db, "acknowledged", gone)

    def telemetry(self) -> dict[str, int]:
        """Records produced, acknowledged and dropped since enrolment, and those that wait."""
        counts = {key: int(self._meta(key, "0")) for key in ("produced", "acknowledged", "dropped")}
        return {**counts, "waiting": self._rows("SELECT COUNT(*) FROM telemetry")[0][0]}


_WAY_OUT: Final = "move it away and enrol this device again with a new kit"


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == 0:
        db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
    elif found != SCHEMA_VERSION:
        raise Unavailable(f"{path}: written by a newer agent (schema {found}): install that agent again")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise Unavailable(f"{path}: the agent's state is damaged ({fault}): {_WAY_OUT}")


def _count(db: sqlite3.Connection, key: str, more: int) -> None:
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
        (key, str(more), more),
    )
