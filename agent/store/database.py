"""Opening the agent's database: as it is, as a copy in memory while the disk takes nothing, or made again.

    opened = open_database(path, steps)     # opened.fault: nothing is kept; opened.rebuilt: it was damaged

A database that is damaged, or gone from an enrolled device, is set aside as `agent.db.damaged` and made again from its
spare (`agent.store.spare`), so that the last good model answers and nothing that protects against a rollback falls.
Without a spare it stays where it is, and the agent says what to do.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.errors import Damaged, Unavailable
from agent.files import sync_folder
from agent.identity.identity import FOLDER as IDENTITY
from agent.store import spare
from agent.store.spare import Spare

log = logging.getLogger("agent.store.database")

WAY_OUT: Final = "move it away and enrol this device again with a new kit"
ASIDE: Final = ".damaged"
NEW: Final = ".new"
CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
SICK: Final = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM),
    }
)
"""What SQLite says of a disk, not of a file."""

Steps = Sequence[tuple[int, str]]
"""What makes the next schema version of each earlier one; 0 is an empty file."""


class _Newer(Unavailable):
    """Written by an agent that knows more: nothing of it is touched."""


@dataclass(frozen=True)
class Opened:
    """`fault`: why nothing is kept now, "" while the disk does its part; `rebuilt`: what was wrong with the file."""

    db: sqlite3.Connection
    fault: str = ""
    rebuilt: str = ""


def open_database(path: Path, steps: Steps) -> Opened:
    """Open it, or make it when absent. Raises `Unavailable`."""
    try:
        return open_on_disk(path, steps)
    except _Newer:
        raise
    except Unavailable as e:
        copy = _in_memory(path, steps)
        if copy is None:
            raise
        log.error("nothing is kept until the disk can be written again: %s", e)  # noqa: TRY400  no bug
        return Opened(copy, fault=str(e))


def open_on_disk(path: Path, steps: Steps) -> Opened:
    """The same, and not in memory."""
    beside = _spare_of(path)
    if beside is not None and beside.version > len(steps):
        raise _newer(path, beside.version)
    try:
        return Opened(_on_disk(path, steps, beside))
    except Damaged as e:
        if beside is None:
            raise
        _make_again(path, steps, beside)
        log.error("%s: made again from its spare", e)  # noqa: TRY400  the disk's fault, not a bug
        return Opened(_on_disk(path, steps, beside), rebuilt=str(e))


def _newer(path: Path, version: int) -> _Newer:
    return _Newer(f"{path}: written by a newer agent (schema {version}): install that agent again")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it says that the file is not what SQLite wrote."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT


def _on_disk(path: Path, steps: Steps, beside: Spare | None) -> sqlite3.Connection:
    if beside is not None and _is_gone(path):
        raise Damaged(f"{path}: the agent's state is gone")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its log the same mode
        connection = _connect(path)
    except (OSError, sqlite3.Error) as e:
        raise Unavailable(f"{path}: the agent's state cannot be opened ({e}): make room, or check the disk") from e
    try:
        _prepare(connection, path, steps, beside)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_gone(path: Path) -> bool:
    return not path.exists() or path.stat().st_size == 0


def _spare_of(path: Path) -> Spare | None:
    """None for a new file of a device that is not enrolled: an earlier life must not come back into the next one."""
    if _is_gone(path) and not path.with_name(IDENTITY).exists():
        return None
    return Spare.read(spare.path_of(path))


def _make_again(path: Path, steps: Steps, beside: Spare) -> None:
    """A crash between any two steps leaves the damaged file, or none: the next start does it again."""
    new = path.with_name(f"{path.name}{NEW}")
    try:
        for name in (new, new.with_name(f"{new.name}-wal"), new.with_name(f"{new.name}-shm")):
            name.unlink(missing_ok=True)
        db = _connect(new)
        try:
            new.chmod(0o600)
            _prepare(db, new, steps)
            db.execute("BEGIN IMMEDIATE")
            beside.restore(db)
            db.execute("COMMIT")
            spare.write(path, db)
        finally:
            db.close()
        for suffix in ("-wal", "-shm", ""):  # the log first: it must never lie beside a file that it is not of
            file = path.with_name(f"{path.name}{suffix}")
            if file.exists():
                file.rename(file.with_name(f"{file.name}{ASIDE}"))
                sync_folder(path.parent)
        new.rename(path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as e:
        raise Unavailable(f"{path}: damaged, and not made again ({e}): make room, or check the disk") from e


def _in_memory(path: Path, steps: Steps) -> sqlite3.Connection | None:
    """What nothing can be written to: a copy of the file and its log, or of the spare; None where both are no good."""
    beside = _spare_of(path)
    for place in (Path("/dev/shm"), None):  # noqa: S108  in memory where there is one: the disk may be full
        with suppress(OSError, sqlite3.Error, Unavailable), tempfile.TemporaryDirectory(dir=place) as folder:
            for name in (path.name, f"{path.name}-wal"):
                if name == path.name or path.with_name(name).exists():
                    shutil.copyfile(path.with_name(name), Path(folder) / name)
            return _copied(Path(folder) / path.name, steps, beside)
    return _of_spare(path, steps, beside) if beside is not None else None


def _copied(path: Path, steps: Steps, beside: Spare | None) -> sqlite3.Connection:
    file, copy = _connect(path), _connect(":memory:")
    try:
        _prepare(file, path, steps, beside)
        file.backup(copy)
    except BaseException:
        copy.close()
        raise
    finally:
        file.close()
    copy.execute("PRAGMA query_only=ON")
    return copy


def _of_spare(path: Path, steps: Steps, beside: Spare) -> sqlite3.Connection:
    copy = _connect(":memory:")
    _prepare(copy, path, steps)
    beside.restore(copy)
    copy.execute("PRAGMA query_only=ON")
    return copy


class _Connection(sqlite3.Connection):
    """Damage may stand in the text of an error, which Python cannot read then: it raises no error of SQLite's."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        with _told():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        with _told():
            return super().executemany(*arguments)

    def executescript(self, *arguments: Any) -> sqlite3.Cursor:
        with _told():
            return super().executescript(*arguments)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as e:
        error = sqlite3.DatabaseError(f"what it says is no text: {e.object[:80]!r}")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error from e


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5, factory=_Connection)


def _prepare(db: sqlite3.Connection, path: Path, steps: Steps, beside: Spare | None = None) -> None:
    try:
        _bring_up(db, path, steps, beside)
        fault = spare.fault_of(db, beside)
    except sqlite3.Error as e:
        if _is_sickness(e, path):  # a full disk, a read-only one, or another program in the file
            raise Unavailable(f"{path}: the agent's state cannot be used ({e}): make room, or check the disk") from e
        raise Damaged(f"{path}: the agent's state is damaged ({e}): {WAY_OUT}") from e
    if fault:
        raise Damaged(f"{path}: the agent's state is damaged ({fault}): {WAY_OUT}")


def _is_sickness(error: sqlite3.Error, path: Path) -> bool:
    """Whether the disk is what is wrong, and not the file. A damaged header may say of a file that it is read-only."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code != sqlite3.SQLITE_READONLY:
        return code in SICK
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return False
    except OSError:
        return True


def _bring_up(db: sqlite3.Connection, path: Path, steps: Steps, beside: Spare | None) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    (found,) = db.execute("PRAGMA user_version").fetchone()
    known = beside.version if beside is not None else 0
    if found < known or 0 < known <= len(steps) < found:
        raise Damaged(f"{path}: the agent's state is damaged (schema {found}, its spare has {known}): {WAY_OUT}")
    if not 0 <= found <= len(steps):
        raise _newer(path, found)
    for version, step in steps[found:]:
        db.executescript(f"BEGIN IMMEDIATE;{step}PRAGMA user_version={version + 1};COMMIT;")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise Damaged(f"{path}: the agent's state is damaged ({fault}): {WAY_OUT}")
