"""A small ext4 disk whose power can be cut, and a child process that works on it until the cut.

    with Disk(tmp_path) as disk:
        with disk.child("trust", arguments) as child:   # `python power_cut.py trust FOLDER ...`
            child.wait_until_done()                     # it wrote one last file without fsync, and said "done"
            disk.cut()
        disk.mount()
        disk.check_that_the_cut_fired()

The cut is ext4's own shutdown without a flush of its journal (EXT4_IOC_SHUTDOWN, flag NOLOGFLUSH): what was not
synced is gone, as it is when a board loses its power. It needs root, loop devices and mkfs.ext4.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import firmware_profiles
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.files import sync_folder, write_private
from agent.identity.identity import FOLDER, Identity, Joined
from agent.identity.keys import key_pem, new_key
from agent.identity.slots import promote, store_next
from agent.store import blobs
from agent.store.queue import Queued
from agent.store.state import StateFile
from agent.trust.clock import Clock
from agent.trust.keeper import TrustKeeper
from agent.update import ModelState, Placed
from wire import topics
from wire.chunks import ChunkList, ChunkRef, digest
from wire.profile import Profile

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
UNSYNCED = "unsynced"


def why_not() -> str | None:
    """Why no disk can be made here; None when it can."""
    if os.geteuid() != 0:
        return "needs root: a loop mount"
    missing = [name for name in ("mkfs.ext4", "mount", "umount", "losetup") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


class Disk:
    """An ext4 file system in a file of 64 MB, mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self.folder = folder / "disk"
        self._mounted = False

    def __enter__(self) -> Self:
        with self._image.open("wb") as file:
            file.truncate(64 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)
        self.folder.mkdir()
        self.mount()
        return self

    def __exit__(self, *_exception: object) -> None:
        # A test that failed may hold a file open, and a mount that stays would be in everybody's way.
        self.unmount("--lazy")

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.folder)], check=True)
        self._mounted = True

    def unmount(self, *options: str) -> None:
        if self._mounted:
            subprocess.run(["umount", *options, str(self.folder)], check=True)
            self._mounted = False

    @contextlib.contextmanager
    def child(self, story: str, *arguments: str) -> Iterator[Child]:
        """A process that runs one of the stories below on this disk; ended before the disk is unmounted."""
        command = [sys.executable, "-P", __file__, story, str(self.folder), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
            try:
                yield Child(process)
            finally:
                process.kill()
                process.wait(20)
        self.unmount()

    def cut(self) -> None:
        """From here nothing reaches the disk any more, the journal in memory included."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def check_that_the_cut_fired(self) -> None:
        path = self.folder / UNSYNCED
        assert not path.exists() or path.read_bytes() == b"", "what was never synced is still there: no power was cut"


class Child:
    """The process that works until the power goes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait_until_done(self) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == b"done\n", f"the child ended with {self._process.wait(20)}"


# --- the stories: the agent's own parts, in a process of their own --------------------------------------------------


def trust(folder: Path, documents: str, synchronous: str = "") -> None:
    """Take the metadata that lies in `documents`, as a device takes it from the broker."""
    state = StateFile.open(folder / "agent.db")
    if synchronous:
        state._db.execute(f"PRAGMA synchronous={synchronous}").fetchall()
    files = {path.name.replace("_", "/"): path.read_bytes() for path in Path(documents).iterdir()}
    if not state.trust_documents():
        state.save_trust({"root": files["root/1"]})
    keeper = TrustKeeper(state, Clock(state, wall=lambda: datetime.fromisoformat(os.environ["NOW"])))
    for name, data in files.items():
        root = name.startswith("root/")
        keeper.take(topics.TrustRoot(int(name[5:])) if root else topics.TrustRole(name), data)
    assert keeper.settle().changed
    assert keeper.judge() == {}


def memory(folder: Path) -> None:
    """Everything else that an agent may not forget, each by the call that the agent makes."""
    state = StateFile.open(folder / "agent.db")
    placed = Placed(target="models/intents/kitchen/1.0.0/x86-64", digest="sha256:" + 64 * "0")
    state.save_trust({"root": b"{}"}, {"intents/kitchen": 7})
    state.accept_desired((1, 41), {"kitchen": ModelState(active=placed)}, "c2VhbGVk")
    state.accept_command((1, 5), "done")
    state.note_time(datetime(2026, 11, 22, 8, tzinfo=UTC))
    assert state.begin_start() == 1
    for seq in range(1, 51):
        state.queue([Queued("b1", seq, b'{"seq":%d}' % seq)], limit=1_000_000)
    state.acknowledged("b1", range(1, 11))


def blob(folder: Path, synced: str = "yes") -> None:
    """A blob of two chunks that came over the line, finished."""
    if synced == "no":
        blobs.sync_folder = lambda _: None
        os.fsync = lambda _: None
    parts = (b"a" * 100_000, b"b" * 50_000)
    refs = tuple(ChunkRef(digest=digest(part), size=len(part)) for part in parts)
    whole = b"".join(parts)
    partial = blobs.Blobs(folder / "blobs", 0).begin(ChunkList(blob=digest(whole), size=len(whole), chunks=refs))
    for i, part in enumerate(parts):
        assert partial.put(i, part)
    partial.finish()
    partial.close()


def renewal(folder: Path) -> None:
    """A renewed certificate in the second slot, then promoted, as after the broker has accepted it."""
    first, second = new_key(), new_key()
    (folder / FOLDER).mkdir()
    profile = Profile.from_toml((Path(firmware_profiles.__file__).parent / "x86-64.toml").read_bytes())
    joined = Joined(device="a", fleet="https://f", broker="b:1", profile=profile)
    files = {"key.pem": key_pem(first), "cert.pem": _certificate(first, 1).public_bytes(Encoding.PEM)}
    for name, data in {**files, "ca.pem": b"", "device.json": joined.to_bytes()}.items():
        write_private(folder / FOLDER / name, data)
    sync_folder(folder / FOLDER)
    sync_folder(folder)
    store_next(folder, Identity.load(folder), second, _certificate(second, 2))
    promote(folder)


def _certificate(key: ec.EllipticCurvePrivateKey, serial: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial)
    dates = datetime(2026, 1, 1, tzinfo=UTC), datetime(2046, 1, 1, tzinfo=UTC)
    return builder.not_valid_before(dates[0]).not_valid_after(dates[1]).sign(key, hashes.SHA256())


def main(story: str, folder: Path, arguments: list[str]) -> None:
    {"trust": trust, "memory": memory, "blob": blob, "renewal": renewal}[story](folder, *arguments)
    (folder / UNSYNCED).write_bytes(b"x" * 4096)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
