"""One thread that does all deciding and storing, one thing after the other.

Requests and messages meet here, so no two of them ever change the fleet at the same time, the database has one writer,
and the loop that answers requests is not held up by a disk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
WAITING: Final = 64 * 1024 * 1024
"""Bytes of things that may wait; what comes beyond them is dropped."""
TOGETHER: Final = 250
"""How many are done at once at most: a request that comes meanwhile waits for them."""
_log = logging.getLogger(__name__)


class Serial:
    """A thread and its queue. `closing`: nothing more is taken."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serial")
        self.closing = threading.Event()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something there and wait for what comes out of it."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))

    def post(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have something done without waiting for it."""
        with suppress(RuntimeError):  # closed meanwhile
            self._pool.submit(_told, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Finish what waits, and end."""
        self.closing.set()
        self._pool.shutdown()


class Gathered(Generic[T]):
    """Things that come one by one, and are done together with those that came while the thread had other work.

    gathered = Gathered(serial, inbox.take, size=lambda message: len(message.payload))
    gathered.add(message)                       # from another thread, which is never held up

    Beyond `WAITING` bytes what comes is dropped, and the log says so: who waited here could send nothing meanwhile.
    """

    def __init__(self, serial: Serial, work: Callable[[Sequence[T]], None], *, size: Callable[[T], int]) -> None:
        self._serial, self._work, self._size = serial, work, size
        self._waiting: deque[T] = deque()
        self._bytes = self._dropped = 0
        self._busy = False
        self._lock = threading.Lock()

    def add(self, thing: T) -> None:
        """Hand one over. What comes once the thread is closed is dropped."""
        with self._lock:
            if self._bytes >= WAITING:
                self._drop()
                return
            self._waiting.append(thing)
            self._bytes += self._size(thing)
            if not self._busy:
                self._busy = True
                self._serial.post(self._do)

    def _do(self) -> None:
        with self._lock:
            things = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        try:
            self._work(things)
        finally:
            with self._lock:
                self._bytes -= sum(map(self._size, things))
                if self._dropped and self._bytes < WAITING // 2:
                    _log.warning("there is room again: %d messages were dropped, devices say them again", self._dropped)
                    self._dropped = 0
                self._busy = bool(self._waiting)
                if self._busy:
                    self._serial.post(self._do)  # behind what came meanwhile

    def _drop(self) -> None:
        if not self._dropped:
            _log.warning("%d messages wait, as many as may: those that come are dropped meanwhile", len(self._waiting))
        self._dropped += 1


def _told(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:  # noqa: BLE001  the edge of a thread: a fault of ours is told in full, and the next thing is done
        _log.exception("a message was not handled")
