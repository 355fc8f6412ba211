"""Backup and restore of a whole fleet: authorities, online keys, database and blobs, in one encrypted file.

    save(data, Path("fleet.backup"), passphrase)          # the fleet may run
    restore(Path("fleet.backup"), new_data, passphrase)   # into a folder that is not there yet

The file is a tar of two age files (age-encryption.org/v1), so that standard tools open it too: `key.age` holds an
identity made for this backup under the passphrase, `fleet.tar.age` the data under that identity:

    tar xf fleet.backup; age -d key.age > key; age -d -i key fleet.tar.age | tar x

age authenticates every piece and the end, so an edited or cut file is refused. A restored fleet raises its epoch, so
everything that it signs is above all that the old one signed since the backup was made. Kits that nobody had used by
then are void: their tokens may have been used since, and work once. The restore itself is noted in the database, so
that devices which renewed their certificate since are taken in (`fleet.trust.adoption`). What else happened since the
backup is not known: above all, who was revoked since then has to be revoked again.
"""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import pyrage
from sqlmodel import select

from fleet.errors import Conflict, Malformed, NotFound, Unavailable, Untrusted
from fleet.store.database import Database, elsewhere
from fleet.store.files import UNFINISHED, atomic, sync_folder, write
from fleet.store.restores import Restore, note_restore
from fleet.store.tables import Device, MetaRow
from wire.units import show_instant

KEY, CONTENT = "key.age", "fleet.tar.age"
DATABASE: Final = "fleet.db"
EPOCH: Final = "epoch"
SECRETS: Final = ("ca", "keys")
SINGLE: Final = ("fleet.toml", "gateway.toml", "alerts.toml", "operator-token")
BLOBS: Final = "blobs"
_ATTEMPTS: Final = 5
_BLOCK: Final = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Restored:
    """What came back: number of blobs, the epoch that the fleet has from now on, and when the backup was made."""

    blobs: int
    epoch: int
    saved: str


def save(data: Path, target: Path, passphrase: str) -> int:
    """Write a backup of the fleet in `data`; gives its size in bytes.

    Raises `NotFound` for a folder without a fleet, `Conflict` when the target is there, `Unavailable` for the disk.
    """
    if (where := elsewhere(data)) is not None:
        raise Conflict(
            f"{data}: the database of this fleet is PostgreSQL at {where[0]}, which this backup cannot hold: save it "
            "with pg_dump, and this folder with it: docs/operate/evidence.md says how, and how to bring both back"
        )
    if not (data / DATABASE).is_file():
        raise NotFound(f"{data}: no fleet has its data here: name its folder with --data")
    if target.exists():
        raise Conflict(f"{target}: exists already: choose another name")
    identity = pyrage.x25519.Identity.generate()
    # What is not encrypted yet stays where it is kept anyway, and not on the disk of the backups.
    with _disk(target), tempfile.TemporaryDirectory(dir=data, prefix=UNFINISHED) as scratch:
        snapshot = Path(scratch)
        _snapshot(data, snapshot)
        with atomic(target) as file:
            _add(file, KEY, pyrage.passphrase.encrypt(str(identity).encode(), passphrase))
            _add_stream(
                file, CONTENT, lambda out: _encrypt(lambda into: _pack(data, snapshot, into), out, identity.to_public())
            )
            file.write(bytes(2 * _BLOCK))
        return target.stat().st_size


def restore(source: Path, data: Path, passphrase: str) -> Restored:
    """Bring a backup back into a folder that does not exist, whole or not at all, and raise its epoch.

    Raises `NotFound` for the file, `Conflict` for the folder, `Untrusted` for a wrong passphrase or a changed file.
    """
    if not source.is_file():
        raise NotFound(f"{source}: there is no such backup")
    if data.exists() and any(data.iterdir()):
        raise Conflict(f"{data}: is not empty: restore into a new folder with --data")
    data.parent.mkdir(parents=True, exist_ok=True)
    with _disk(data), tempfile.TemporaryDirectory(dir=data.parent, prefix=UNFINISHED) as scratch:
        new = Path(scratch) / "data"
        new.mkdir(mode=0o700)
        _unpack(source, new, passphrase)
        saved = datetime.fromtimestamp((new / DATABASE).stat().st_mtime, UTC)
        epoch = _begin_again(new, Restore(made=saved, at=datetime.now(UTC)))
        for folder, _, files in os.walk(new):
            for name in files:
                _sync(Path(folder) / name)
            sync_folder(Path(folder))
        with suppress(FileNotFoundError):
            data.rmdir()
        new.rename(data)
        sync_folder(data.parent)
    blobs = sum(1 for path in (data / BLOBS).rglob("*") if path.is_file())
    return Restored(blobs, epoch, show_instant(saved))


# --- making one -------------------------------------------------------------------------------------------------------


def _snapshot(data: Path, scratch: Path) -> None:
    """Keys, authorities and database of one moment: a key that is switched meanwhile means to look again."""
    for _ in range(_ATTEMPTS):
        before = _secrets(data)
        _copy_database(data / DATABASE, scratch / DATABASE)
        if _secrets(data) == before:
            for name, content in before.items():
                write(_inside(scratch, name), content)
            return
    raise Unavailable(f"{data}: its keys change while they are saved: try again in a moment")


def _secrets(data: Path) -> dict[str, bytes]:
    paths = [path for name in SECRETS for path in sorted((data / name).rglob("*")) if path.is_file()]
    paths += [data / name for name in SINGLE if (data / name).is_file()]
    names = {str(path.relative_to(data)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if UNFINISHED not in name}


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's own online backup: a consistent copy although the fleet writes. Its date is when it was begun."""
    target.unlink(missing_ok=True)
    began = time.time()
    with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
    target.chmod(0o600)
    os.utime(target, (began, began))  # what happened from here on may be missing: `fleet.trust.adoption`


def _pack(data: Path, snapshot: Path, into: IO[bytes]) -> None:
    """The blobs come after the database that names them: none is ever removed or changed."""
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(snapshot.rglob("*")):
            tar.add(path, str(path.relative_to(snapshot)), recursive=False, filter=_plain)
        for path in sorted((data / BLOBS).rglob("*")):
            if not path.name.startswith(UNFINISHED):
                tar.add(path, str(path.relative_to(data)), recursive=False, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of this machine's users stays in the backup."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _encrypt(produce: Callable[[IO[bytes]], None], out: IO[bytes], recipient: pyrage.x25519.Recipient) -> None:
    with _piped(produce) as reader:
        pyrage.encrypt_io(reader, out, [recipient])


@contextmanager
def _piped(produce: Callable[[IO[bytes]], None]) -> Iterator[IO[bytes]]:
    """The reading end of what a thread produces. Its error is raised when the block ends."""
    faults: list[Exception] = []
    read_end, write_end = os.pipe()

    def work() -> None:
        try:
            with os.fdopen(write_end, "wb") as file:
                produce(file)
        except BrokenPipeError:
            pass  # the reader has given up, and says why
        except Exception as e:  # noqa: BLE001  handed to the thread that waits
            faults.append(e)

    thread = threading.Thread(target=work, name="backup", daemon=True)
    thread.start()
    try:
        with os.fdopen(read_end, "rb") as reader:
            yield reader
    finally:
        thread.join()
    for fault in faults:
        raise fault


def _add(file: IO[bytes], name: str, content: bytes) -> None:
    _add_stream(file, name, lambda out: out.write(content))


def _add_stream(file: IO[bytes], name: str, produce: Callable[[IO[bytes]], object]) -> None:
    """A member whose size is known when it is written: its header is filled in afterwards."""
    start = file.tell()
    file.write(bytes(_BLOCK))
    produce(file)
    member = tarfile.TarInfo(name)
    member.size, member.mode = file.tell() - start - _BLOCK, 0o600
    file.write(bytes(-member.size % _BLOCK))
    end = file.tell()
    file.seek(start)
    file.write(member.tobuf(tarfile.GNU_FORMAT))
    file.seek(end)


# --- bringing it back -------------------------------------------------------------------------------------------------


def _unpack(source: Path, new: Path, passphrase: str) -> None:
    try:
        with tarfile.open(source, "r:") as outer:
            identity = _identity(_member(outer, KEY, source).read(), passphrase, source)
            content = _member(outer, CONTENT, source)
            with _piped(lambda into: pyrage.decrypt_io(content, into, [identity])) as plain:
                _extract(plain, new)
    except (tarfile.TarError, pyrage.DecryptError, EOFError) as e:
        raise Untrusted(f"{source}: damaged, cut off or not a backup ({e}): use another one") from e


def _extract(plain: IO[bytes], new: Path) -> None:
    with tarfile.open(fileobj=plain, mode="r|") as tar:
        tar.extractall(new, filter="data")
    while plain.read(1024 * 1024):  # to the end, where age says whether anything is missing
        pass


def _member(outer: tarfile.TarFile, name: str, source: Path) -> IO[bytes]:
    try:
        member = outer.extractfile(name)
    except KeyError as e:
        raise Malformed(f"{source}: not a backup of a fleet: it holds no {name}") from e
    if member is None:
        raise Malformed(f"{source}: not a backup of a fleet: {name} is not a file")
    return member


def _identity(sealed: bytes, passphrase: str, source: Path) -> pyrage.x25519.Identity:
    try:
        return pyrage.x25519.Identity.from_str(pyrage.passphrase.decrypt(sealed, passphrase).decode())
    except (pyrage.DecryptError, pyrage.IdentityError) as e:
        raise Untrusted(f"{source}: does not open: wrong passphrase, or a damaged file") from e


def _begin_again(data: Path, restore: Restore) -> int:
    """The new epoch. It is the time in seconds, so that it rises too when one backup is restored a second time."""
    with closing(Database.in_folder(data)) as database, database.transaction() as session:
        row = session.get(MetaRow, EPOCH) or MetaRow(key=EPOCH, value="1")
        row.value = str(max(int(row.value) + 1, int(restore.at.timestamp())))
        session.add(row)
        note_restore(session, restore)
        for device in session.exec(select(Device).where(Device.state == "new")):
            device.token_expires = min(device.token_expires, show_instant(restore.at))
            session.add(device)
        return int(row.value)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, pyrage.EncryptError) as e:
        raise Unavailable(f"{path}: not written: {e}: make room, or choose another place") from e
