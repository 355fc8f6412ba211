"""One thread that does all deciding and storing, one thing after the other.

Requests and messages meet here, so no two of them ever change the fleet at the same time, the database has one writer,
and the loop that answers requests is not held up by a disk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
WAITING = 256
"""How many messages may wait; one more blocks who hands it over."""
_log = logging.getLogger(__name__)


class Serial:
    """A thread and its queue."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serial")
        self._room = threading.BoundedSemaphore(WAITING)
        self._closing = threading.Event()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something there and wait for what comes out of it."""
        return await asyncio.wrap_future(self._pool.submit(work, *args, **kwargs))

    def post(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have something done, and block while too much waits."""
        while not self._room.acquire(timeout=0.2):
            if self._closing.is_set():
                return
        try:
            self._pool.submit(self._do, lambda: work(*args, **kwargs))
        except RuntimeError:  # closed meanwhile: messages that come now are sent again later
            self._room.release()

    def close(self) -> None:
        """Finish what waits, and end."""
        self._closing.set()
        self._pool.shutdown()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001  the edge of a thread: a fault of ours is told in full, the next message goes on
            _log.exception("a message was not handled")
        finally:
            self._room.release()
