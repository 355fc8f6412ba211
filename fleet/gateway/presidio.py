"""Microsoft Presidio for personal data: in processes of its own, asked in threads, never on the event loop.

    presidio = Presidio(config, looked)
    await presidio.start()                                   # raises Malformed: a setting is wrong
    checked = await presidio.run(lambda: check(filters, ...))     # in a thread, in which `find` may be asked
    await presidio.close()

A process, because it needs spaCy and numpy, which the fleet does not import, because its time grows with what a text
holds, and because a process that takes too long can be ended. What it could not look at does not pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final, TypeVar

from fleet.errors import Malformed, NotJudged
from fleet.gateway.config import PresidioConfig
from fleet.gateway.personal import Found, plain

T = TypeVar("T")
WAITING: Final = 64
"""Looks that wait for a process; one more is refused at once."""
STARTING: Final = 60.0
"""Seconds until a process has to be ready: it imports for two to three."""
_AGAIN: Final = 5.0
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")


class _Process:
    """One of them. For one thread at a time."""

    def __init__(self, config: PresidioConfig) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "fleet.gateway.presidio_program", json.dumps(asdict(config))]
        known = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, env=known
            )
        self._rest = b""
        self._ready = self.is_asked = False

    def wait_ready(self, until: float) -> None:
        """Raises `Malformed` with what it says is wrong, `OSError` when it says nothing in time."""
        if not self._ready:
            said = self._line(until)
            if "error" in said:
                raise Malformed(f"presidio: {said['error']}")
            self._ready = True

    def find(self, text: str, until: float) -> list[Found]:
        """Raises `OSError` when it is dead or too slow: while `is_asked` it is of no more use."""
        self.wait_ready(until)
        self._socket.settimeout(_left(until))
        self.is_asked = True
        self._socket.sendall(json.dumps({"text": text}).encode() + b"\n")
        found = [Found(start, end, kind) for start, end, kind in self._line(until)]
        self.is_asked = False
        return found

    def _line(self, until: float) -> Any:
        while b"\n" not in self._rest:
            self._socket.settimeout(_left(until))
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionResetError("it ended")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        """Whatever it does."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class Presidio:
    """A `Finder`. Made on the event loop; `looked` is told the seconds of each look."""

    def __init__(self, config: PresidioConfig, looked: Callable[[float], None]) -> None:
        self._config, self._looked = config, looked
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="presidio")
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._under_way = 0
        self._look = threading.local()

    @property
    def hold(self) -> int:
        """Characters of a stream that are seen together."""
        return self._config.hold

    async def start(self) -> None:
        """Raises `Malformed` when a setting is not one that Presidio can do."""
        for _ in range(self._config.workers):
            self._idle.put(_Process(self._config))
        loop, until = asyncio.get_running_loop(), time.monotonic() + STARTING
        try:
            for _ in range(self._config.workers):
                process = self._idle.get_nowait()
                self._idle.put(process)
                await loop.run_in_executor(self._threads, process.wait_ready, until)
        except OSError as e:
            raise Malformed(f"presidio: its process did not start: {e}: does `import presidio_analyzer` work?") from e

    async def run(self, act: Callable[[], T]) -> T:
        """What `act` returns, in a thread. Raises what it raises, and `NotJudged`.

        Who is cancelled waits until the thread has let go of what it works on: no longer than two times `timeout`.
        """
        if self._under_way >= self._config.workers + WAITING:
            raise NotJudged(f"presidio: {WAITING} looks wait for it: set workers in [presidio] higher", 1.0)
        started = time.monotonic()
        self._under_way += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._acted, act, started + self._config.timeout
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise
        finally:
            self._under_way -= 1
            self._looked(time.monotonic() - started)

    def _acted(self, act: Callable[[], T], until: float) -> T:
        now = time.monotonic()
        if now >= until:
            raise self._not_judged()
        # From now: one that waited long must not end a process for what little time was left to it.
        self._look.until = now + self._config.timeout
        return act()

    def _not_judged(self) -> NotJudged:
        return NotJudged(
            f"presidio: it could not look at the text within {self._config.timeout:g} s: "
            "try again, send less, or raise timeout in [presidio]",
            _AGAIN,
        )

    def find(self, text: str) -> list[Found]:
        """What it finds in a text; only below `run`. Raises `NotJudged`."""
        if not text.strip():
            return []
        process = self._idle.get()  # there are as many as threads
        try:
            return process.find(plain(text), self._look.until)
        except (OSError, ValueError, Malformed) as e:
            # One that still imports goes on, as does one that was not asked because the time was up before.
            if process.is_asked or not isinstance(e, TimeoutError):
                process.end()
                process = _Process(self._config)
            raise self._not_judged() from e
        finally:
            self._idle.put(process)

    async def close(self) -> None:
        """End the processes."""
        await asyncio.to_thread(self._threads.shutdown)
        while not self._idle.empty():
            self._idle.get_nowait().end()


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return left
