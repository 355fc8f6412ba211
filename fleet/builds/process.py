"""The compiler as a process: no key or path of the fleet, its own folder, and an end whatever it does.

    ended = await run(command, job, folder, bounds, log=log, heard=note, asked=future)

A crash, a hang and too much memory or disk are an `Ended` with the reason in words; nothing of it lives on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from fleet.builds.log import BuildLog
from wire.build import Progress
from wire.errors import WireError
from wire.units import show_seconds, show_size

EVERY: Final = 0.5
"""Seconds between two looks at what a compiler takes."""
PATIENCE: Final = 5.0
"""How long one that was told to end may take to do so."""
_LINE: Final = 1024 * 1024
_ENVIRONMENT: Final = ("PATH", "LANG", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Bounds:
    """What a build may take: bytes of memory, bytes in its folder, seconds. `user`: whom it runs as; "": us.

    `cache` is a folder of several builds which had `held` bytes at the start: what is more counts like its own folder.
    """

    memory: int
    disk: int
    seconds: float
    user: str = ""
    cache: Path | None = None
    held: int = 0


@dataclass(frozen=True)
class Ended:
    """Its exit code, its last line of progress, why it was ended ("" when it ended by itself), and its last words."""

    code: int
    last: Progress | None
    why: str
    words: str


async def run(
    command: Sequence[str],
    job: bytes,
    folder: Path,
    bounds: Bounds,
    *,
    log: BuildLog,
    heard: Callable[[Progress], None],
    asked: asyncio.Future[str],
) -> Ended:
    """Run a compiler in `folder` until it ends or somebody `asked` for its end, with the reason."""
    process = await _start(command, folder, bounds)
    follower = _Follower(log, heard)
    talk = [
        asyncio.create_task(_feed(process, job)),
        asyncio.create_task(follower.progress(process)),
        asyncio.create_task(follower.chatter(process)),
    ]
    try:
        why = await _watch(process, folder, bounds, follower, asked)
    finally:
        # What it started holds its pipes, and must not outlive it.
        await asyncio.to_thread(_kill, folder, process.pid)
        code = await process.wait()
        await asyncio.gather(*talk)
    # A single file stops at the bound: the compiler saw an error, and this is why.
    why = why or follower.fault or (await asyncio.to_thread(_full, folder, bounds) if code else "")
    return Ended(code, follower.last, why, log.tail[-1] if log.tail else "it said nothing")


def kill_left_behind(folder: Path) -> None:
    """End every process that works in a folder: what a killed fleet left behind."""
    _kill(folder, None)


async def _start(command: Sequence[str], folder: Path, bounds: Bounds) -> asyncio.subprocess.Process:
    cpu = int(bounds.seconds * (os.cpu_count() or 1)) + 1  # of one process: it never gets there before the deadline
    limits = json.dumps({"cpu": cpu, "file": bounds.disk, "core": 0})
    child = [sys.executable, "-P", "-m", "fleet.builds.child", str(os.getpid()), limits, bounds.user]
    known = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return await asyncio.create_subprocess_exec(
        *child,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**known, "HOME": str(folder), "TMPDIR": str(folder / "tmp")},
        start_new_session=True,
        limit=_LINE,
    )


async def _feed(process: asyncio.subprocess.Process, job: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it ended before it read its job: its exit code says why
        process.stdin.write(job)
        await process.stdin.drain()
    process.stdin.close()


class _Follower:
    """Reads what a compiler writes."""

    def __init__(self, log: BuildLog, heard: Callable[[Progress], None]) -> None:
        self._log, self._heard = log, heard
        self.last: Progress | None = None
        self.fault = ""

    async def progress(self, process: asyncio.subprocess.Process) -> None:
        """Lines of progress, until one that is none."""
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                if self.fault:
                    continue  # nobody believes it any more, and a full pipe must not hold up its end
                self.last = Progress.from_bytes(line)
                where = f"{self.last.profile}: " if self.last.profile else ""
                self._log.write(f"{self.last.event}: {where}{self.last.message}")
                self._heard(self.last)
        except (WireError, ValueError) as e:
            self.fault = f"the compiler wrote a line that is no progress: {str(e)[:200]}"
            while await process.stdout.read(_LINE):
                pass

    async def chatter(self, process: asyncio.subprocess.Process) -> None:
        """Everything else: into the log."""
        assert process.stderr is not None
        rest = b""
        while piece := await process.stderr.read(65536):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-65536:]
            for line in lines:
                self._log.write(line.decode(errors="replace"))
        if rest:
            self._log.write(rest.decode(errors="replace"))


async def _watch(
    process: asyncio.subprocess.Process, folder: Path, bounds: Bounds, follower: _Follower, asked: asyncio.Future[str]
) -> str:
    """Until it ends; gives why it was ended, or ""."""
    started, exited = time.monotonic(), asyncio.create_task(process.wait())
    either: set[asyncio.Future[Any]] = {exited, asked}
    try:
        while True:
            await asyncio.wait(either, timeout=EVERY, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                return ""
            why = asked.result() if asked.done() else follower.fault
            why = why or await asyncio.to_thread(_over, process.pid, folder, bounds, time.monotonic() - started)
            if why:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                await asyncio.wait({exited}, timeout=PATIENCE)
                return why
    finally:
        exited.cancel()


def _over(pid: int, folder: Path, bounds: Bounds, seconds: float) -> str:
    """Which bound is passed, in words; "" for none."""
    if seconds > bounds.seconds:
        return f"it took over {show_seconds(bounds.seconds)}: compile for fewer profiles, or raise build_time"
    memory = _memory(_members(folder, pid))
    if memory > bounds.memory:
        return (
            f"out of memory: it took {show_size(memory)} of {show_size(bounds.memory)}: give a smaller model, or raise "
            "build_memory"
        )
    return _full(folder, bounds)


def _full(folder: Path, bounds: Bounds) -> str:
    disk = used(folder) + (max(0, used(bounds.cache) - bounds.held) if bounds.cache else 0)
    if disk < bounds.disk:
        return ""
    return (
        f"out of disk: its folder and the cache grew by {show_size(disk)} of {show_size(bounds.disk)}: compile for "
        "fewer profiles, or raise build_disk"
    )


def _members(folder: Path, session: int | None) -> Iterator[psutil.Process]:
    """Processes of a session, and those that work in a folder, whatever session they made for themselves."""
    for process in psutil.process_iter():
        try:
            ours = session is not None and os.getsid(process.pid) == session
            if ours or Path(process.cwd()).is_relative_to(folder):
                yield process
        except (psutil.Error, OSError):
            continue


def _memory(processes: Iterator[psutil.Process]) -> int:
    """Bytes: what they share with others, such as libraries, counts once."""
    own, shared = 0, 0
    for process in processes:
        with suppress(psutil.Error):
            info = process.memory_info()
            common = getattr(info, "shared", 0)
            own, shared = own + info.rss - common, max(shared, common)
    return own + shared


def used(folder: Path) -> int:
    """Bytes that a folder takes on the disk; a file that goes away meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(Path(parent) / name).st_blocks * 512
    return total


def _kill(folder: Path, session: int | None) -> None:
    """Until none is left: one may start another while we look. Reaping the first is the loop's affair, not ours."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and (found := [p for p in _members(folder, session) if _alive(p)]):
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
