"""Reading an answer that may fall silent.

    reading = Reading(answer.content, 60.0)
    piece = await reading.piece()       # b"" at its end; raises `aiohttp.SocketTimeoutError` after 60 s of nothing
    reading.close()

aiohttp's own timer (`sock_read`) is set anew with each piece that comes, which costs a stream a tenth of all that it
costs. This one is set once, and looks when it is due whether anything came meanwhile.
"""

from __future__ import annotations

import asyncio

import aiohttp


class Reading:
    """One body, read by one task. `seconds`: how long it may be silent while somebody waits for it."""

    def __init__(self, content: aiohttp.StreamReader, seconds: float) -> None:
        self._content, self._seconds = content, seconds
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._waits = False
        self._due = self._loop.call_later(seconds, self._look)

    async def piece(self) -> bytes:
        """What came, at least one byte; nothing at the end."""
        self._since, self._waits = self._loop.time(), True
        try:
            return await self._content.readany()
        finally:
            self._waits = False

    def close(self) -> None:
        """Look no more."""
        self._due.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = self._since if self._waits else now
        if now - since >= self._seconds:
            self._content.set_exception(aiohttp.SocketTimeoutError(f"silent for {self._seconds:g} s"))
        else:
            self._due = self._loop.call_at(since + self._seconds, self._look)
