"""Makes the deltas that rollouts wait for, one after the other, each by a compiler in a process of its own.

    async with DeltaMaker(settings, deltas, database, blobs, serial).running(): ...

The folder of one is that of a build, `<data>/builds/delta-<name>`, and is gone afterwards. Whatever goes wrong is the
reason of a delta that there is not: devices fetch what they lack.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from fleet.builds.log import BuildLog
from fleet.builds.process import Bounds, Ended, run
from fleet.builds.runner import give, user_of
from fleet.deltas import Deltas, Made, Pair, is_worth
from fleet.errors import FleetError, Unavailable
from fleet.serial import Serial
from fleet.settings import FleetSettings
from fleet.store.blobs import BlobStore
from fleet.store.database import Database
from wire.chunks import WHOLE, ChunkList, digest
from wire.delta import LENGTH, DeltaHeader, split
from wire.errors import Malformed, WireError

SECONDS: Final = 120.0
"""Longest time that one may take."""
LARGEST: Final = 256 * 1024 * 1024
"""Bytes of a delta that are taken: whoever lacks more than that fetches the file."""
_AGAIN: Final = 10.0
"""Seconds until a database that gave nothing is asked again."""
_log = logging.getLogger(__name__)


class DeltaMaker:
    """One task: `wake` has it look, and it looks at the start."""

    def __init__(
        self, settings: FleetSettings, deltas: Deltas, database: Database, blobs: BlobStore, serial: Serial
    ) -> None:
        self._settings, self._deltas, self._database, self._blobs = settings, deltas, database, blobs
        self._serial = serial
        self._folder = settings.data / "builds"
        self._user = user_of(settings.build_user)
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make deltas until the block ends; one under way is made again at the next start."""
        for left in self._folder.glob("delta-*"):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        loop = asyncio.get_running_loop()
        self._deltas.wake = lambda: loop.call_soon_threadsafe(self._wake.set)
        task = asyncio.create_task(self._run(), name="deltas")
        try:
            yield
        finally:
            self._deltas.wake = lambda: None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                while (pair := await self._serial.run(self._next)) is not None:
                    await self._one(pair)
                await self._wake.wait()
            except (FleetError, SQLAlchemyError) as e:
                _log.error("deltas: %s", e)
                await asyncio.sleep(_AGAIN)

    def _next(self) -> Pair | None:
        with self._database.transaction() as session:
            return self._deltas.next(session)

    def _take(self, pair: Pair, made: Made | None, reason: str) -> None:
        with self._database.transaction() as session:
            self._deltas.take(session, pair, made, reason)

    async def _one(self, pair: Pair) -> None:
        made, reason = None, ""
        folder = self._folder / f"delta-{secrets.token_hex(6)}"
        try:
            made = await self._make(pair, folder)
        except (FleetError, WireError, OSError) as e:
            reason = str(e)
            _log.warning("no delta from %s to %s: %s", pair.base, pair.blob, reason)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if made is not None:
            _log.info("delta from %s to %s: %d bytes", pair.base, pair.blob, made.size)
        await self._serial.run(self._take, pair, made, reason)

    async def _make(self, pair: Pair, folder: Path) -> Made:
        work = (folder / "work").resolve()
        await asyncio.to_thread(self._lay_out, pair, work)
        asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        bounds = Bounds(self._settings.build_memory, self._settings.build_disk, SECONDS, self._user)
        program = [str(self._settings.compiler_python or sys.executable), "-P", "-m", "compiler", "delta"]
        files = ["--base", str(work / "base"), "--target", str(work / "target"), "--output", str(work / "out")]
        with BuildLog(folder / "log") as log:
            ended = await run([*program, *files], b"", work, bounds, log=log, heard=lambda _: None, asked=asked)
        if reason := _fault(ended):
            raise Unavailable(reason.replace(f"{work}/", ""))
        return await asyncio.to_thread(self._keep, pair, work / "out")

    def _lay_out(self, pair: Pair, work: Path) -> None:
        """The two files in a folder of the compiler's own: it sees no path of the fleet."""
        work.parent.mkdir(mode=0o711 if self._user else 0o700)
        work.mkdir(mode=0o700)
        (work / "tmp").mkdir()
        shutil.copyfile(self._blobs.path(pair.base), work / "base")
        shutil.copyfile(self._blobs.path(pair.blob), work / "target")
        if self._user:
            give(work, self._user)

    def _keep(self, pair: Pair, made: Path) -> Made:
        """Take what was written into the store. Raises `Malformed` or `Unavailable` when it is none of the pair."""
        data = _read(made / "delta", LARGEST)
        header, _ = split(data[: LENGTH + DeltaHeader.LIMIT])
        if (header.base, header.target) != (pair.base, pair.blob):
            raise Malformed(f"the compiler made a delta from {header.base} to {header.target}")
        sizes = tuple(self._blobs.path(blob).stat().st_size for blob in (pair.base, pair.blob))
        if (header.base_size, header.target_size) != sizes:
            found = f"{header.base_size} to {header.target_size}"
            raise Malformed(f"the compiler made a delta from {found} bytes, of blobs of {sizes[0]} and {sizes[1]}")
        listed = _read(made / "chunks", WHOLE) if len(data) > WHOLE else b""
        if not is_worth(len(data) + len(listed), pair.lacking):
            raise Unavailable(f"it has {len(data)} bytes, and the chunks that it saves {pair.lacking}")
        if not listed:
            return Made(self._blobs.add(data), len(data), None, 0)
        chunks = ChunkList.from_bytes(listed)
        if (chunks.blob, chunks.size) != (digest(data), len(data)):
            raise Malformed(f"the compiler made a chunk list of {chunks.blob} for the delta {digest(data)}")
        return Made(self._blobs.add(data), len(data), self._blobs.add(listed), len(listed))


def _read(path: Path, limit: int) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise Unavailable(f"the compiler said that it was done, and wrote no {path.name}")
    if path.stat().st_size > limit:
        raise Unavailable(f"its {path.name} has {path.stat().st_size} bytes, at most {limit} are taken")
    return path.read_bytes()


def _fault(ended: Ended) -> str:
    """Why there is no delta; "" when there is one."""
    if ended.why:
        return ended.why
    if ended.last is not None and ended.last.event == "failed":
        return ended.last.message
    done = ended.code == 0 and ended.last is not None and ended.last.event == "done"
    return "" if done else f"the compiler ended with code {ended.code} before it was done: {ended.words}"
