"""Runs the builds of the queue: lays out a folder, starts the compiler, follows it, keeps what it wrote.

    async with runner.running(): ...
    runner.wake()                     # something was submitted
    runner.cancel("0123abcd")

`<data>/builds/<id>` holds `log`, `out` (an OCI image layout) and, while it runs, `work`; `<data>/builds/cache` is the
compiler's. None of it is in a backup: it can be made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pwd
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from fleet.builds import datasets, sources
from fleet.builds.log import BuildLog
from fleet.builds.process import EVERY, Bounds, Ended, kill_left_behind, run, used
from fleet.builds.queue import STOPPED, BuildRequest, Queue
from fleet.errors import FleetError, Unavailable
from fleet.serial import Serial
from fleet.settings import FleetSettings
from fleet.store.blobs import BlobStore
from fleet.store.files import private_folder
from fleet.store.tables import BuildRow, DatasetRow
from wire.build import BuildJob, Data, Progress
from wire.errors import WireError

CANCELLED: Final = "cancelled"
_INFEASIBLE: Final = 3
"""Exit code of the compiler when no variant of a profile holds the limits."""
_MOST_RESULTS: Final = 200
_log = logging.getLogger(__name__)


class Runner:
    """Runs what waits, as many at a time as the settings say."""

    def __init__(self, settings: FleetSettings, queue: Queue, blobs: BlobStore, serial: Serial) -> None:
        self._settings, self._queue, self._blobs, self._serial = settings, queue, blobs, serial
        self.folder = settings.data / "builds"
        self._user = user_of(settings.build_user)
        self._wake = asyncio.Event()
        self._asked: dict[str, asyncio.Future[str]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run builds until the block ends; those that run then are ended and have failed."""
        self._prepare()
        for work in self.folder.resolve().glob("*/work"):
            await asyncio.to_thread(kill_left_behind, work)
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        for build in await self._serial.run(self._queue.recover):
            _log.warning("build %s: %s", build, STOPPED)
        task = asyncio.create_task(self._run(), name="builds")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def cancel(self, build: str) -> None:
        """End a build that runs; for another one nothing happens."""
        self._ask(build, CANCELLED)

    def log_path(self, build: str) -> Path:
        """Where the log of a build is."""
        return self.folder / build / "log"

    def artifact_path(self, build: str, name: str) -> Path:
        """Where a file that a build wrote is. `name` is one of those in the database."""
        return self.folder / build / "out" / name

    def _prepare(self) -> None:
        cache = self.folder / "cache"
        private_folder(self.folder)
        private_folder(cache)
        if self._user:
            # Others may pass through, to a folder of theirs whose name they know, and see nothing on the way.
            self._settings.data.chmod(0o711)
            self.folder.chmod(0o711)
            give(cache, self._user)

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._wake.clear()
                while len(tasks) < self._settings.builds_at_once and (row := await self._next()):
                    self._asked[row.id] = asyncio.get_running_loop().create_future()
                    tasks.add(asyncio.create_task(self._one(row), name=f"build {row.id}"))
                waiting = asyncio.create_task(self._wake.wait())
                await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                tasks = {task for task in tasks if not task.done()}
        finally:
            for build in list(self._asked):
                self._ask(build, STOPPED)
            await asyncio.gather(*tasks)

    async def _next(self) -> BuildRow | None:
        try:
            return await self._serial.run(self._queue.take)
        except FleetError as e:
            _log.error("builds: the queue cannot be read: %s", e)
            return None

    async def _one(self, row: BuildRow) -> None:
        """A build, from its folder to its end. Whatever happens to it, the fleet goes on."""
        artifacts: list[dict[str, Any]] = []
        try:
            ended = await self._compile(row)
            state, reason = _verdict(ended)
            if state == "succeeded":
                artifacts = await asyncio.to_thread(self._keep, row.id)
        except (FleetError, WireError, OSError) as e:
            state, reason = "failed", str(e)
        finally:
            del self._asked[row.id]
        work = self.folder / row.id / "work"
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        reason = reason.replace(f"{work.resolve()}/", "").replace(f"{work}/", "")
        _log.info("build %s: %s%s", row.id, state, f": {reason}" if reason else "")
        try:
            await self._serial.run(self._queue.end, row.id, state, reason, artifacts)
        except FleetError as e:
            _log.error("build %s: its end was not stored: %s", row.id, e)

    async def _compile(self, row: BuildRow) -> Ended:
        job = await asyncio.to_thread(self._lay_out, row)
        settings, folder, cache = self._settings, self.folder / row.id, self.folder / "cache"
        held = await asyncio.to_thread(used, cache)
        bounds = Bounds(settings.build_memory, settings.build_disk, settings.build_time, self._user, cache, held)
        command = [str(settings.compiler_python or sys.executable), "-P", "-m", "compiler", "build"]
        notes = _Notes()
        saver = asyncio.create_task(self._save(row.id, notes))
        try:
            with BuildLog(folder / "log") as log:
                return await run(
                    command,
                    job.to_bytes(),
                    (folder / "work").resolve(),
                    bounds,
                    log=log,
                    heard=notes.take,
                    asked=self._asked[row.id],
                )
        finally:
            saver.cancel()
            await asyncio.gather(saver, return_exceptions=True)
            await self._note(row.id, notes)

    async def _save(self, build: str, notes: _Notes) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self._note(build, notes)

    async def _note(self, build: str, notes: _Notes) -> None:
        if not notes.changed or notes.last is None:
            return
        notes.changed = False
        try:
            await self._serial.run(self._queue.note, build, notes.last.to_value(), list(notes.results))
        except FleetError as e:
            _log.warning("build %s: its progress was not stored: %s", build, e)

    def _lay_out(self, row: BuildRow) -> BuildJob:
        """The folder of a build with everything that its compiler reads."""
        request, work = BuildRequest.of(row), (self.folder / row.id / "work").resolve()
        (self.folder / row.id).mkdir(mode=0o711 if self._user else 0o700)
        work.mkdir(mode=0o700)
        (work / "tmp").mkdir()
        with self._queue.database.transaction() as session:
            source = sources.lay_out(sources.find(session, request.source), self._blobs, work / "source")
            test = self._data(datasets.find(session, request.test), work)
            found = datasets.find(session, request.calibration) if request.calibration else None
            calibration = self._data(found, work) if found else None
        # Beside the tokenizer that it may name for a graph; not into a folder, all of whose files are the source.
        beside = work / "source" if source.is_file() else work
        describe = beside / "describe.toml" if request.describe is not None else None
        if describe:
            describe.write_text(request.describe or "", encoding="utf-8")
        job = request.job(
            source=str(source),
            describe=str(describe) if describe else None,
            test=test,
            calibration=calibration,
            output=str(work / "out"),
            cache=str((self.folder / "cache").resolve()),
            # Its own process and the libraries need the rest.
            memory=f"{self._settings.build_memory * 3 // 4} B",
        )
        if self._user:
            give(work, self._user)
        return job

    def _data(self, row: DatasetRow, work: Path) -> Data:
        # Its name for people is what the lineage of a bundle says.
        path = work / f"{row.name}.{row.format}"
        shutil.copyfile(self._blobs.path(row.digest), path)
        return Data(path=str(path), licence=row.licence)

    def _keep(self, build: str) -> list[dict[str, Any]]:
        """Take what was written out of the compiler's hands; gives every file of it."""
        made, kept = self.folder / build / "work" / "out", self.folder / build / "out"
        if made.is_symlink() or not made.is_dir():
            raise Unavailable("the compiler said that it was done, and wrote nothing")
        made.rename(kept)
        if self._user:
            give(kept, str(os.getuid()))
        found = []
        for parent, _, names in os.walk(kept):
            for path in (Path(parent) / name for name in names):
                if path.is_symlink() or not path.is_file():
                    raise Unavailable(f"the compiler wrote {path.relative_to(kept)}, which is no plain file")
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                name, size = str(path.relative_to(kept)), path.stat().st_size
                found.append({"path": name, "digest": f"sha256:{digest}", "size": size})
        return sorted(found, key=lambda one: str(one["path"]))

    def _ask(self, build: str, why: str) -> None:
        asked = self._asked.get(build)
        if asked is not None and not asked.done():
            asked.set_result(why)


class _Notes:
    """What a compiler said: its newest line, and those that stay."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        self.results: list[dict[str, Any]] = []
        self.changed = False

    def take(self, line: Progress) -> None:
        """One more line."""
        self.last, self.changed = line, True
        if line.event in ("variant", "note") and len(self.results) < _MOST_RESULTS:
            self.results.append(line.to_value())


def _verdict(ended: Ended) -> tuple[str, str]:
    """State and reason of a build that is over."""
    if ended.why == CANCELLED:
        return "cancelled", "cancelled while it ran"
    if ended.why:
        return "failed", ended.why
    if ended.last is not None and ended.last.event == "failed":
        return "infeasible" if ended.code == _INFEASIBLE else "failed", ended.last.message
    if ended.code == 0 and ended.last is not None and ended.last.event == "done":
        return "succeeded", ""
    if ended.code == -9:
        return "failed", "the system killed the compiler (signal 9), most likely because memory ran out: free some"
    how = f"signal {-ended.code}" if ended.code < 0 else f"code {ended.code}"
    return "failed", f"the compiler crashed ({how}) before it was done: {ended.words}"


def user_of(name: str) -> str:
    """Whom a compiler runs as; "" for us. Raises `Unavailable` for a user that does not exist."""
    if not name:
        return ""
    try:
        pwd.getpwnam(name)
    except KeyError as e:
        raise Unavailable(f"build_user: there is no user {name!r} on this machine: add it, or leave it empty") from e
    if os.getuid() != 0:
        _log.warning("build_user: only root can run the compiler as another user: it runs as the fleet's")
        return ""
    return name


def give(folder: Path, user: str) -> None:
    """Make a folder with everything in it a user's own."""
    owner: Sequence[int] = (int(user), os.getgid()) if user.isdigit() else pwd.getpwnam(user)[2:4]
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent) / name for name in (*folders, *names))):
            os.chown(path, owner[0], owner[1], follow_symlinks=False)
