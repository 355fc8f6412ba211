"""An install that is ended at its n-th operation on the disk, for n = first, first + step ..., until one comes through.

    python killed_install.py FOLDER kill 1 1     # SIGKILL at every operation
    python killed_install.py DISK cut 5 20       # the power goes at the 5th, 25th ... on a small ext4 disk in DISK

Every operation that changes the disk counts: files opened for writing, written, cut to length, synced, renamed and
removed, folders made, and each statement in the agent's database. A process that only reads leaves the disk as it was,
so ending it at a read shows nothing new. One line of JSON a fault on standard output; a fault that was not survived
ends the program with its trace. Each device is a child that is forked from a process without threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from power_cut import Disk
from securesystemslib.signer import CryptoSigner
from simulators import simulator
from tiny_bundle import TinyBundle, make_layout

from wire.chunks import digest

agent = simulator("agent")
ON = "turn the light on"
CHANGING = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Fuse:
    """Counts operations on the disk below a folder, and ends everything at the n-th. It says which one that was."""

    def __init__(self, folder: Path, fatal: int, say: int, end: Callable[[], None]) -> None:
        self._folder = str(folder)
        self._fatal = fatal
        self._say = say
        self._end = end
        self._lit = False
        self.seen = 0

    def light(self, database: Any) -> None:
        sys.addaudithook(self._audit)
        for name in (
            "fsync",
            "fdatasync",
            "pwrite",
            "pwritev",
            "write",
            "ftruncate",
            "posix_fallocate",
            "copy_file_range",
        ):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        database.set_trace_callback(self._statement)
        self._lit = True

    def _statement(self, sql: str) -> None:
        word = sql.split(maxsplit=1)[0]
        if word not in ("SELECT", "PRAGMA"):
            self._count(f"sql {word}")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & WRITING and self._below(arguments[0]):
            self._count("open")
        elif event in CHANGING and self._below(arguments[0]):
            self._count(event)

    def _below(self, path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self._folder)

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(fd: int, *arguments: Any) -> Any:
            if self._lit and self._below(_path_of(fd)):
                self._count(name)
            return call(fd, *arguments)

        return counted

    def _count(self, operation: str) -> None:
        if not self._lit:
            return
        self.seen += 1
        if self.seen == self._fatal:
            self._lit = False
            os.write(self._say, operation.encode())
            self._end()
            os.kill(os.getpid(), signal.SIGKILL)


def _path_of(fd: int) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    return ""


class Scene:
    """A fleet with three releases, and a device that runs the second one and has the first as its previous."""

    def __init__(self, folder: Path) -> None:
        layout = folder / "layout"
        self.zero, self.one, self.two = (make_layout(layout, version=f"{n}.0.0") for n in (1, 2, 3))
        self.key = CryptoSigner(ec.generate_private_key(ec.SECP256R1()))
        self.sealing = ec.generate_private_key(ec.SECP256R1())
        self.sim = agent.SimFleet(self.key.public_key, self.sealing.public_key())
        self.base = folder / "base"
        self.base.mkdir()
        for number, bundle in enumerate((self.zero, self.one), start=1):
            self.sim.release(bundle, counter=number)
            self.sim.desire(bundle, rollout=f"r{number}")
            in_child(lambda bundle=bundle: self._install(self.base, bundle))
        self.sim.release(self.two, counter=3)
        self.sim.desire(self.two, rollout="r3")

    def device(self, folder: Path) -> Any:
        return agent.Device(folder, self.sim, self.key, self.sealing, probation_requests=2, probation_time=0.1)

    async def _install(self, folder: Path, bundle: TinyBundle) -> None:
        device = self.device(folder)
        device.connect()
        await device.until(lambda: device.active() == [bundle.digest])
        await device.stop()

    async def run(self, folder: Path, fuse: Fuse) -> None:
        """The install, until the fuse ends it; with an answer on probation, so that this is a state like the others."""
        device = self.device(folder)
        fuse.light(device.state._db)
        await device.core.start()
        device.connect()
        await device.until(lambda: device.active() == [self.two.digest])
        await device.stop()

    async def check(self, folder: Path) -> str:
        """What must hold after any fault: offline a sound model answers; then the update comes to its end by itself."""
        device = self.device(folder)
        await device.core.start()
        found = (await device.service.infer("kitchen", (ON,))).digest
        slots = {slot.slot: slot.digest for slot in device.installer.slots()}
        assert slots["active"] == found or slots.get("candidate") == found, slots
        before = {self.one.digest: self.zero.digest, self.two.digest: self.one.digest}
        assert slots["previous"] == before[slots["active"]], "previous is not intact"
        for slot in ("active", "previous"):
            self._is_whole(device, slots.get(slot))
        device.connect()
        await device.until(lambda: device.active() == [self.two.digest])
        assert (await device.service.infer("kitchen", (ON,))).digest == self.two.digest
        slots = {slot.slot: slot.digest for slot in device.installer.slots()}
        assert slots == {"active": self.two.digest, "previous": self.one.digest}
        await device.stop()
        for digest_ in slots.values():
            self._is_whole(device, digest_)
        self._is_clean(device)
        return "two" if found == self.two.digest else "one"

    def _is_whole(self, device: Any, manifest: str | None) -> None:
        for blob in device.store.blobs_of(manifest) | {manifest} if manifest else ():
            assert device.store.is_sound(blob), f"{blob} of a slot is not whole"

    def _is_clean(self, device: Any) -> None:
        needed = {blob for b in (self.one, self.two) for blob in device.store.blobs_of(b.digest) | {b.digest}}
        left = {f"sha256:{path.name}" for path in device.store.folder.iterdir() if len(path.name) == 64}
        assert left == needed
        assert not list(device.store.folder.glob("*.partial"))
        assert all(digest((device.store.path(blob)).read_bytes()) == blob for blob in needed)


def in_child(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[int, str]:
    """Run it in a forked process: its exit code, below 0 for a signal, and what it gave back."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(write, str(asyncio.run(work())).encode())
            code = 0
        except BaseException:  # noqa: BLE001  a forked child must end here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    said = b""
    while part := os.read(read, 1000):
        said += part
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        sys.exit(f"a device ended with code {code}")
    return code, said.decode()


def fault(scene: Scene, folder: Path, fatal: int, end: Callable[[], None]) -> tuple[int, str, int]:
    """One install with a fuse: the device's exit code, the operation that was its last, how many there were."""
    read, write = os.pipe()
    fuse = Fuse(folder, fatal, write, end)

    async def run() -> int:
        await scene.run(folder, fuse)
        return fuse.seen

    code, seen = in_child(run)
    os.close(write)
    operation = os.read(read, 200).decode()
    os.close(read)
    return code, operation, int(seen or 0)


@contextlib.contextmanager
def killed(scene: Scene, folder: Path, number: int) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder of its own; nothing but the process ends."""
    state = folder / str(number)
    shutil.copytree(scene.base, state)
    yield state, lambda: None, lambda: None
    shutil.rmtree(state)


@contextlib.contextmanager
def cut(scene: Scene, folder: Path, number: int) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A small disk of its own, whose power goes first."""
    place = folder / str(number)
    place.mkdir()
    with Disk(place) as disk:
        state = disk.folder / "state"
        shutil.copytree(scene.base, state)
        (disk.folder / "unsynced").touch()
        os.sync()

        def end() -> None:
            (disk.folder / "unsynced").write_bytes(b"x" * 4096)
            disk.cut()

        def mount() -> None:
            disk.unmount()
            disk.mount()
            disk.check_that_the_cut_fired()

        yield state, end, mount
    shutil.rmtree(place)


def main(folder: Path, how: str, first: int, step: int) -> None:
    place = {"kill": killed, "cut": cut}[how]
    scene = Scene(folder)
    number = first
    while True:
        with place(scene, folder, number) as (state, end, after):
            code, operation, seen = fault(scene, state, number, end)
            fired = code == -signal.SIGKILL and bool(operation)
            assert fired or code == 0
            if fired:
                after()
            _, found = in_child(lambda state=state: scene.check(state))
        line = {"at": number, "fired": fired, "operation": operation, "seen": seen, "found": found}
        print(json.dumps(line), flush=True)
        if not fired:
            return
        number += step


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
