"""What an agent remembers: one SQLite file in its state folder.

Write-ahead log with `synchronous=FULL`: measured with the power cut, what was committed is there (NORMAL lost it).
Things that belong together change in one transaction. Every method is one short transaction on the caller's thread.

A disk that cannot be written at the start (full, or mounted read-only) must not keep a model from answering: then what
is there is read from a copy in memory, and every write tries the disk again first. A file that is damaged is made again
from its spare (`agent.store.database`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from agent.errors import Unavailable
from agent.measuring import Task
from agent.store import queue, spare
from agent.store.database import WAY_OUT, Opened, is_damage, open_database, open_on_disk
from agent.store.queue import Queued
from agent.update import ModelState
from wire.ledger import StreamLedger
from wire.messages import SecurityEvent
from wire.units import instant, show_instant

log = logging.getLogger("agent.store.state")
_Read = TypeVar("_Read")

STATE_FILE: Final = "agent.db"
SCHEMA_VERSION: Final = 4
SECURITY_KEPT: Final = 50
SPARE_TIME: Final = timedelta(hours=1)
"""Step of the signed time that is written to the spare, too: a flash card pays for each."""
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
_STEPS: Final = ((0, _SCHEMA), (1, _FLOORS), (2, _MEASURING), (3, queue.SCHEMA))
"""What makes the next schema version of each earlier one; 0 is an empty file."""


class StateFile:
    """The open file. Raises `Unavailable` when the disk does not do its part."""

    def __init__(self, opened: Opened, path: Path) -> None:
        self._db = opened.db
        self._path = path
        self._rebuilt = opened.rebuilt
        self._spared_time: datetime | None = None
        self.fault = opened.fault
        """Why nothing is kept now: what is read comes from a copy in memory. "" while the disk does its part."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open, or make when absent. Raises `Unavailable`, also for a file of a newer agent."""
        file = cls(open_database(path, _STEPS), path)
        if not file.fault:
            file._write_spare()
        return file

    def take_rebuilt(self) -> str:
        """What was wrong with the file when it was made again, once; "" when nothing was."""
        rebuilt, self._rebuilt = self._rebuilt, ""
        return rebuilt

    def _open_again(self) -> None:
        """The disk may do its part again, or the file be damaged. Raises `Unavailable` while nothing can be had."""
        opened = open_on_disk(self._path, _STEPS)
        self._db.close()
        self._db, self.fault = opened.db, ""
        self._rebuilt = opened.rebuilt or self._rebuilt
        log.warning("%s: opened again", self._path)

    def _write_spare(self) -> None:
        """Nothing stands beside a database that is in memory alone: a simulated device has no disk."""
        try:
            if self._db.execute("PRAGMA database_list").fetchone()[2]:
                spare.write(self._path, self._db)
        except (Unavailable, sqlite3.Error) as e:
            log.error("the spare is older for now: %s", e)  # noqa: TRY400  a full disk, not a bug

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self, *, kept: bool = False, spared: bool = True) -> Iterator[sqlite3.Connection]:
        """`kept`: it changes what the spare holds, which is written after it unless not `spared`."""
        if self.fault:
            self._open_again()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                if kept:
                    spare.seal(self._db)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._open_if_damaged(e)
            raise Unavailable(f"{self._path}: not written ({e}): make room on the disk, or check it") from e
        if kept and spared:
            self._write_spare()

    def _open_if_damaged(self, error: sqlite3.Error) -> None:
        if is_damage(error) and not self.fault:
            self._open_again()

    def _rows(self, sql: str, *values: object) -> list[Any]:
        return self._read(lambda db: db.execute(sql, values).fetchall())

    def _read(self, read: Callable[[sqlite3.Connection], _Read]) -> _Read:
        try:
            try:
                return read(self._db)
            except sqlite3.DatabaseError as e:
                self._open_if_damaged(e)
                return read(self._db)
        except sqlite3.Error as e:
            raise Unavailable(f"{self._path}: not read ({e}): {WAY_OUT}") from e

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
        with self._transaction(kept=True) as db:
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

    def offers(self) -> bytes:
        """The offers of the newest desired state, as `keep_offers` was given them."""
        return self._meta("offers", "[]").encode()

    def keep_offers(self, offers: bytes) -> None:
        """Keep them beyond a restart; they are hints, and need not change together with what they are for."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('offers', ?)", (offers.decode(),))

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
        with self._transaction(kept=True) as db:
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
        with self._transaction(kept=True) as db:
            db.execute("UPDATE measuring SET document = ? WHERE job = ?", (task.to_bytes(), task.job.id))

    def save_model(self, name: str, model: ModelState) -> None:
        """One step of an update: slots and intent together."""
        with self._transaction(kept=True) as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, model.to_bytes()))

    # --- starts and commands ----------------------------------------------------------------------------------

    def begin_start(self) -> int:
        """Count one more start of the agent since enrolment: everything it says carries this number."""
        with self._transaction(kept=True) as db:
            _count(db, "starts", 1)
        return int(self._meta("starts", "0"))

    def note_clean_stop(self) -> None:
        """The agent was asked to end, and does."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('stopped', 'clean')")

    def take_clean_stop(self) -> bool:
        """Whether the last run ended as asked. The next end is a crash again until it says otherwise."""
        if not self._meta("stopped", ""):
            return False
        with self._transaction() as db:
            db.execute("DELETE FROM meta WHERE key = 'stopped'")
        return True

    def recall(self, key: str) -> str:
        """What was remembered under a name; "" for nothing."""
        return self._meta(key, "")

    def remember(self, key: str, value: str) -> None:
        """Keep a small text under a name."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def last_command(self) -> tuple[tuple[int, int], str]:
        """Epoch and seq of the newest command acted on, and the outcome that was answered; (0, 0) before the first."""
        number, _, outcome = self._meta("command", "0.0 done").partition(" ")
        return _number(number), outcome

    def accept_command(self, number: tuple[int, int], outcome: str) -> None:
        """A command is acted on from here, once: also when the agent is killed while it acts."""
        with self._transaction(kept=True) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('command', ?)", (f"{number[0]}.{number[1]} {outcome}",))

    def renewed_in(self) -> int:
        """The epoch in which the fleet saw the certificate last, to renew it; 0 as long as none was noted."""
        return int(self._meta("renewed-in", "0"))

    def note_renewed_in(self, epoch: int) -> None:
        """Remember that epoch."""
        with self._transaction(kept=True) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('renewed-in', ?)", (str(epoch),))

    # --- time and security ------------------------------------------------------------------------------------

    def newest_time(self) -> datetime:
        """The newest time that the fleet has signed, or 1970: trusted time is never below it."""
        return instant(self._meta("time", "1970-01-01T00:00:00Z"))

    def note_time(self, when: datetime) -> None:
        """Remember a signed time if it is newer."""
        before = self.newest_time()
        if when > before:
            self._spared_time = self._spared_time or before
            spared = when - self._spared_time >= SPARE_TIME
            with self._transaction(kept=True, spared=spared) as db:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('time', ?)", (show_instant(when),))
            self._spared_time = when if spared else self._spared_time

    def note_enrolment(self, when: datetime) -> None:
        """This device was not enrolled before this signed time: the newest until the fleet tells another."""
        rows = [("time", max(when, self.newest_time())), ("enrolled", max(when, self.enrolled()))]
        with self._transaction(kept=True) as db:
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

    # --- telemetry (agent.store.queue) --------------------------------------------------------------------------

    def queue(
        self,
        new: Iterable[Queued],
        limit: int,
        *,
        lost: Mapping[str, int] | None = None,
        now: datetime | None = None,
    ) -> None:
        """Add records; while all of them take more than `limit` bytes others give way by the rules of their streams."""
        with self._transaction() as db:
            queue.add(db, new, limit, lost=lost, now=now)

    def next_batch(self) -> Sequence[Queued]:
        """What should be sent next: alarms first, then the oldest samples."""
        return self._read(queue.next_batch)

    def acknowledged(self, boot: str, seqs: Iterable[int]) -> None:
        """The fleet holds these records of a boot: forget them."""
        with self._transaction() as db:
            queue.forget(db, boot, seqs)

    def lose(self, boot: str, seq: int) -> None:
        """Forget one record that cannot be read any more; it is counted as dropped."""
        with self._transaction() as db:
            queue.lose(db, boot, seq)

    def memory(self) -> str:
        """The name of what this file counts: another one when the file was lost."""
        return self._meta("memory", "")

    def ledger(self) -> tuple[StreamLedger, ...]:
        """Where every record went, by stream, since this file was made."""
        return self._read(queue.ledger)

    def telemetry(self) -> dict[str, int]:
        """The same over all streams."""
        names, ledger = ("produced", "delivered", "merged", "dropped", "waiting"), self.ledger()
        return {name: sum(getattr(stream, name) for stream in ledger) for name in names}


def _number(text: str) -> tuple[int, int]:
    epoch, seq = text.split(".")
    return int(epoch), int(seq)


def _count(db: sqlite3.Connection, key: str, more: int) -> None:
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + ?",
        (key, str(more), more),
    )
