"""What an agent remembers: one SQLite file in its state folder.

Write-ahead log with `synchronous=FULL`: measured with the power cut, what was committed is there (NORMAL lost it).
Things that belong together change in one transaction. Every method is one short transaction on the caller's thread.

A disk that cannot be written at the start (full, or mounted read-only) must not keep a model from answering: then what
is there is read from a copy in memory, and every write tries the disk again first.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from agent.errors import Unavailable
from agent.measuring import Task
from agent.update import ModelState
from wire.messages import SecurityEvent
from wire.units import instant, show_instant

log = logging.getLogger("agent.state")

STATE_FILE: Final = "agent.db"
SCHEMA_VERSION: Final = 3
SECURITY_KEPT: Final = 50
LONGEST_SUBJECT: Final = 200
LONGEST_REASON: Final = 400
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE trust (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE models (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
CREATE TABLE telemetry (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, record BLOB NOT NULL,
                        UNIQUE (boot, seq)) STRICT;
CREATE TABLE security (id INTEGER PRIMARY KEY, at TEXT NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
"""
_FLOORS: Final = "CREATE TABLE floors (model TEXT PRIMARY KEY, floor INTEGER NOT NULL) STRICT;"
_MEASURING: Final = "CREATE TABLE measuring (job TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;"
_STEPS: Final = ((0, _SCHEMA), (1, _FLOORS), (2, _MEASURING))
"""What makes the next schema version of each earlier one; 0 is an empty file."""


@dataclass(frozen=True)
class Queued:
    """A telemetry record that waits, as its document's bytes."""

    boot: str
    seq: int
    record: bytes


class StateFile:
    """The open file. Raises `Unavailable` when the disk does not do its part."""

    def __init__(self, connection: sqlite3.Connection, path: Path, fault: str = "") -> None:
        self._db = connection
        self._path = path
        self.fault = fault
        """Why nothing is kept now: what is read comes from a copy in memory. "" while the disk does its part."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open, or make when absent. Raises `Unavailable` for a file that is corrupt or of a newer agent."""
        try:
            return cls(_on_disk(path), path)
        except Unavailable as e:
            copy = _in_memory(path)
            if copy is None:
                raise
            log.error("nothing is kept until the disk can be written again: %s", e)  # noqa: TRY400  no bug
            return cls(copy, path, str(e))

    def _back_on_disk(self) -> None:
        """The copy was not changed, so the file says the same. Raises `Unavailable` while the disk takes nothing."""
        connection = _on_disk(self._path)
        self._db.close()
        self._db, self.fault = connection, ""
        log.warning("%s: the disk can be written again", self._path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self.fault:
            self._back_on_disk()
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

    def save_trust(
        self, documents: Mapping[str, bytes], floors: Mapping[str, int] | None = None, *, forget_time: bool = False
    ) -> None:
        """Replace the trusted metadata as a whole, and raise the floors that it names, by model (`intents/kitchen`).

        `forget_time`: a new root rotated the keys that said what time it is; what they said goes with the old root.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM trust")
            db.executemany("INSERT INTO trust VALUES (?, ?)", documents.items())
            db.executemany(
                "INSERT INTO floors VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET floor = MAX(floor, excluded.floor)",
                (floors or {}).items(),
            )
            if forget_time:
                db.execute("DELETE FROM meta WHERE key = 'time'")

    def floor(self, model: str) -> int:
        """The highest floor ever seen of a model (`intents/kitchen`): nothing below it is installed again."""
        rows = self._rows("SELECT floor FROM floors WHERE model = ?", model)
        return int(rows[0][0]) if rows else 0

    def last_desired(self) -> tuple[int, int]:
        """Epoch and seq of the newest desired state acted on; (0, 0) before the first."""
        return _number(self._meta("desired", "0.0"))

    def sealed_keys(self) -> str:
        """The key ring of the newest desired state that brought one, sealed as it came; "" before the first."""
        return self._meta("keys", "")

    def models(self) -> dict[str, ModelState]:
        """Every model by name."""
        return {name: ModelState.from_bytes(data) for name, data in self._rows("SELECT name, document FROM models")}

    def measuring(self) -> dict[str, Task]:
        """Every measuring job that is remembered, by id, the oldest first."""
        return {job: Task.from_bytes(data) for job, data in self._rows("SELECT * FROM measuring ORDER BY rowid")}

    def accept_desired(
        self,
        last: tuple[int, int],
        models: Mapping[str, ModelState],
        keys: str = "",
        measuring: Mapping[str, Task] | None = None,
    ) -> None:
        """A desired state is acted on from here: its number, its keys, and what it makes of models and jobs, at once.

        Without keys those that are here stay: the fleet seals none for what it no longer lists.
        """
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('desired', ?)", (f"{last[0]}.{last[1]}",))
            if keys:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('keys', ?)", (keys,))
            db.execute("DELETE FROM models")
            db.executemany("INSERT INTO models VALUES (?, ?)", [(n, m.to_bytes()) for n, m in models.items()])
            db.execute("DELETE FROM measuring")
            tasks = (measuring or {}).items()
            db.executemany("INSERT INTO measuring VALUES (?, ?)", [(job, task.to_bytes()) for job, task in tasks])

    def save_task(self, task: Task) -> None:
        """One step of a measuring job."""
        with self._transaction() as db:
            db.execute("UPDATE measuring SET document = ? WHERE job = ?", (task.to_bytes(), task.job.id))

    def save_model(self, name: str, model: ModelState) -> None:
        """One step of an update: slots and intent together."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, model.to_bytes()))

    # --- starts and commands ----------------------------------------------------------------------------------

    def begin_start(self) -> int:
        """Count one more start of the agent since enrolment: everything it says carries this number."""
        with self._transaction() as db:
            _count(db, "starts", 1)
        return int(self._meta("starts", "0"))

    def last_command(self) -> tuple[tuple[int, int], str]:
        """Epoch and seq of the newest command acted on, and the outcome that was answered; (0, 0) before the first."""
        number, _, outcome = self._meta("command", "0.0 done").partition(" ")
        return _number(number), outcome

    def accept_command(self, number: tuple[int, int], outcome: str) -> None:
        """A command is acted on from here, once: also when the agent is killed while it acts."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('command', ?)", (f"{number[0]}.{number[1]} {outcome}",))

    def renewed_in(self) -> int:
        """The epoch in which the fleet saw the certificate last, to renew it; 0 as long as none was noted."""
        return int(self._meta("renewed-in", "0"))

    def note_renewed_in(self, epoch: int) -> None:
        """Remember that epoch."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('renewed-in', ?)", (str(epoch),))

    # --- time and security ------------------------------------------------------------------------------------

    def newest_time(self) -> datetime:
        """The newest time that the fleet has signed, or 1970: trusted time is never below it."""
        return instant(self._meta("time", "1970-01-01T00:00:00Z"))

    def note_time(self, when: datetime) -> None:
        """Remember a signed time if it is newer."""
        if when > self.newest_time():
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (show_instant(when),))

    def note_enrolment(self, when: datetime) -> None:
        """This device was not enrolled before this signed time: the newest until the fleet tells another."""
        rows = [("time", max(when, self.newest_time())), ("enrolled", max(when, self.enrolled()))]
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, show_instant(latest)) for key, latest in rows]
            )

    def enrolled(self) -> datetime:
        """When this device was enrolled, by signed time: a command from before it is of an earlier life.

        1970 for one that an older agent enrolled.
        """
        return instant(self._meta("enrolled", "1970-01-01T00:00:00Z"))

    def note_security(self, event: SecurityEvent) -> int:
        """Remember what was refused; the newest `SECURITY_KEPT` stay. The number of its row."""
        with self._transaction() as db:
            row = db.execute(
                "INSERT INTO security (at, subject, reason) VALUES (?, ?, ?)",
                (event.at, event.subject[:LONGEST_SUBJECT], event.reason[:LONGEST_REASON]),
            ).lastrowid
            db.execute("DELETE FROM security WHERE id <= (SELECT MAX(id) FROM security) - ?", (SECURITY_KEPT,))
        assert row is not None
        return row

    def fold_security(self, suffixes: Mapping[int, str]) -> None:
        """Add to the reasons of events, by row, how often each came again."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE security SET reason = substr(reason, 1, ?) || ? WHERE id = ?",
                [(LONGEST_REASON - len(suffix), suffix, row) for row, suffix in suffixes.items()],
            )

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

    def lose(self, boot: str, seq: int) -> None:
        """Forget one record that cannot be read any more; it is counted as dropped."""
        with self._transaction() as db:
            gone = db.execute("DELETE FROM telemetry WHERE boot = ? AND seq = ?", (boot, seq)).rowcount
            _count(db, "dropped", gone)

    def telemetry(self) -> dict[str, int]:
        """Records produced, acknowledged and dropped since enrolment, and those that wait."""
        counts = {key: int(self._meta(key, "0")) for key in ("produced", "acknowledged", "dropped")}
        return {**counts, "waiting": self._rows("SELECT COUNT(*) FROM telemetry")[0][0]}


_WAY_OUT: Final = "move it away and enrol this device again with a new kit"


def _on_disk(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its log the same mode
        connection = _connect(path)
    except (OSError, sqlite3.Error) as e:
        raise Unavailable(f"{path}: the agent's state cannot be opened ({e}): make room, or check the disk") from e
    try:
        _prepare(connection, path)
    except sqlite3.OperationalError as e:  # a full disk, a read-only one, or another program in the file
        connection.close()
        raise Unavailable(f"{path}: the agent's state cannot be used ({e}): make room, or check the disk") from e
    except sqlite3.Error as e:
        connection.close()
        raise Unavailable(f"{path}: the agent's state is damaged ({e}): {_WAY_OUT}") from e
    except Unavailable:
        connection.close()
        raise
    return connection


def _in_memory(path: Path) -> sqlite3.Connection | None:
    """A copy that nothing can be written to, of the file and its log; None where there is none, or it is damaged."""
    for place in (Path("/dev/shm"), None):  # noqa: S108  in memory where there is one: the disk may be full
        with suppress(OSError, sqlite3.Error, Unavailable), tempfile.TemporaryDirectory(dir=place) as folder:
            for name in (path.name, f"{path.name}-wal"):
                if name == path.name or path.with_name(name).exists():
                    shutil.copyfile(path.with_name(name), Path(folder) / name)
            return _copied(Path(folder) / path.name)
    return None


def _copied(path: Path) -> sqlite3.Connection:
    file, copy = _connect(path), _connect(":memory:")
    try:
        _prepare(file, path)
        file.backup(copy)
    except BaseException:
        copy.close()
        raise
    finally:
        file.close()
    copy.execute("PRAGMA query_only=ON")
    return copy


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if not 0 <= found <= SCHEMA_VERSION:
        raise Unavailable(f"{path}: written by a newer agent (schema {found}): install that agent again")
    for version, step in _STEPS[found:]:
        db.executescript(f"BEGIN IMMEDIATE;{step}PRAGMA user_version={version + 1};COMMIT;")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise Unavailable(f"{path}: the agent's state is damaged ({fault}): {_WAY_OUT}")


def _number(text: str) -> tuple[int, int]:
    epoch, seq = text.split(".")
    return int(epoch), int(seq)


def _count(db: sqlite3.Connection, key: str, more: int) -> None:
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
        (key, str(more), more),
    )
