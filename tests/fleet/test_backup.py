from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle, until
from sqlmodel import select

from fleet.errors import Conflict, NotFound, Unavailable, Untrusted
from fleet.store import backup
from fleet.store.backup import CONTENT, KEY, restore, save
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from fleet.store.tables import Device, MetaRow
from wire.units import instant

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as a fleet leaves it, small."""
    folder = tmp_path / "fleet"
    for name in ("ca/ca.key", "ca/ca.pem", "keys/fleet.pem", "keys/chunk-secret", "operator-token"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(f"secret of {name}".encode())
    with closing(Database.in_folder(folder)) as database, database.transaction() as session:
        session.add(Device(id="kitchen-1", profile="x86-64", created="", token_hash="", token_expires=""))
    blobs = BlobStore(folder / "blobs")
    for n in range(20):
        blobs.add(os.urandom(200_000) + bytes([n]))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("fleet.db")}


def devices(folder: Path) -> list[str]:
    with closing(Database.in_folder(folder)) as database, database.transaction() as session:
        return list(session.exec(select(Device.id)))


def epoch(folder: Path) -> str:
    with closing(Database.in_folder(folder)) as database, database.transaction() as session:
        return session.get_one(MetaRow, "epoch").value


def test_everything_comes_back_for_this_user_only_and_in_a_higher_epoch(data: Path, tmp_path: Path) -> None:
    save(data, tmp_path / "b", PASSPHRASE)
    restored = restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    assert files(tmp_path / "new") == files(data)
    assert devices(tmp_path / "new") == ["kitchen-1"]
    assert (restored.blobs, epoch(tmp_path / "new")) == (20, str(restored.epoch))
    assert restored.epoch > 1
    assert abs(datetime.now(UTC) - instant(restored.saved)) < timedelta(minutes=1)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    save(tmp_path / "new", tmp_path / "b2", PASSPHRASE)
    assert restore(tmp_path / "b2", tmp_path / "newer", PASSPHRASE).epoch > restored.epoch


def test_one_backup_that_is_restored_twice_gives_two_epochs(data: Path, tmp_path: Path) -> None:
    """Accident: the restored fleet is lost too. What it signed in its epoch must not be in the way of the next one."""
    save(data, tmp_path / "b", PASSPHRASE)
    first = restore(tmp_path / "b", tmp_path / "one", PASSPHRASE).epoch
    until(lambda: time.time() >= first + 1, what="the next second")
    assert restore(tmp_path / "b", tmp_path / "two", PASSPHRASE).epoch > first


def test_a_token_that_may_have_been_used_since_the_backup_does_not_work_again(data: Path, tmp_path: Path) -> None:
    """Attack: a kit that enrolled its device after the backup was made is used a second time, with another key."""
    with closing(Database.in_folder(data)) as database, database.transaction() as session:
        late = "2999-01-01T00:00:00.000Z"
        session.add(Device(id="waits", profile="x86-64", created="", token_hash="h", token_expires=late))
        session.add(Device(id="in", state="enrolled", profile="x86-64", created="", token_hash="h", token_expires=late))
    save(data, tmp_path / "b", PASSPHRASE)
    restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    with closing(Database.in_folder(tmp_path / "new")) as database, database.transaction() as session:
        assert instant(session.get_one(Device, "waits").token_expires) <= datetime.now(UTC)
        assert session.get_one(Device, "in").token_expires == late


def test_nothing_readable_is_written_beside_the_backup_not_even_for_a_moment(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: the disk that backups are written to is read, now or later."""
    beside = tmp_path / "backups"
    beside.mkdir()
    seen: list[list[bytes]] = []
    encrypt = backup.pyrage.encrypt_io

    def looking(*arguments: Any) -> None:
        seen.append([path.read_bytes() for path in beside.rglob("*") if path.is_file()])
        encrypt(*arguments)

    monkeypatch.setattr(backup.pyrage, "encrypt_io", looking)
    save(data, beside / "b", PASSPHRASE)
    assert len(seen) == 1
    assert not any(b"secret of" in content or b"SQLite" in content for content in seen[0])
    assert not list(data.glob(".new-*"))


def test_the_file_shows_nothing_and_opens_with_its_passphrase_only(data: Path, tmp_path: Path) -> None:
    save(data, tmp_path / "b", PASSPHRASE)
    assert b"secret of" not in (tmp_path / "b").read_bytes()
    with pytest.raises(Untrusted, match="wrong passphrase"):
        restore(tmp_path / "b", tmp_path / "new", "another passphrase")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_an_edited_backup_is_refused_and_leaves_nothing(data: Path, tmp_path: Path, where: float) -> None:
    """Attack: one bit of a backup is flipped."""
    save(data, tmp_path / "b", PASSPHRASE)
    content = bytearray((tmp_path / "b").read_bytes())
    content[int(len(content) * where)] ^= 1
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(Untrusted, match="damaged"):
        restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "fleet"]


def test_a_backup_that_was_cut_off_is_refused(data: Path, tmp_path: Path) -> None:
    """Accident: the copy of a backup is not whole."""
    save(data, tmp_path / "b", PASSPHRASE)
    whole = (tmp_path / "b").read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 70_000):
        (tmp_path / "b").write_bytes(whole[:size])
        with pytest.raises(Untrusted):
            restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
        assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_and_a_wrong_folder_is_named(data: Path, tmp_path: Path) -> None:
    save(data, tmp_path / "b", PASSPHRASE)
    with pytest.raises(Conflict, match="exists already"):
        save(data, tmp_path / "b", PASSPHRASE)
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "b", data, PASSPHRASE)
    with pytest.raises(NotFound, match="no fleet"):
        save(tmp_path, tmp_path / "c", PASSPHRASE)
    with pytest.raises(NotFound, match="no such backup"):
        restore(tmp_path / "c", tmp_path / "new", PASSPHRASE)


def test_a_full_disk_leaves_no_half_backup(data: Path, tmp_path: Path) -> None:
    """Accident: the disk of the backup is full."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(Unavailable, match="room"):
            save(data, small / "b", PASSPHRASE)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_standard_tools_see_an_age_file_in_a_tar(data: Path, tmp_path: Path) -> None:
    save(data, tmp_path / "b", PASSPHRASE)
    with tarfile.open(tmp_path / "b", "r:") as tar:
        assert tar.getnames() == [KEY, CONTENT]
        for name in (KEY, CONTENT):
            member = tar.extractfile(name)
            assert member is not None
            assert member.read(22) == b"age-encryption.org/v1\n"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_a_restored_fleet_serves_the_same_releases_devices_and_token(scratch: Path) -> None:
    with FleetProcess(scratch / "fleet") as fleet:
        publisher = initialise_trust(fleet)
        manifest, blobs = tiny_bundle()
        publisher.release(manifest, blobs)
        fleet.api("POST", "/api/v1/devices", {"device": "kitchen-1", "profile": "x86-64"})
        save(fleet.data, scratch / "b", PASSPHRASE)  # while it runs
        before, token = fleet.api("GET", "/api/v1/models"), fleet.token
        versions = fleet.api("GET", "/api/v1/status")["trust"]
    restore(scratch / "b", scratch / "new", PASSPHRASE)
    shutil.rmtree(scratch / "fleet")
    with FleetProcess(scratch / "new") as fleet:
        assert fleet.token == token
        assert fleet.api("GET", "/api/v1/models") == before
        assert [d["device"] for d in fleet.api("GET", "/api/v1/devices")] == ["kitchen-1"]
        new = until(lambda: fleet.api("GET", "/api/v1/status")["trust"], what="trust")
        assert all(new[name]["version"] >= versions[name]["version"] for name in versions)
