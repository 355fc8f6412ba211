"""Somebody between a device and its broker, who delays every byte, or cuts the line for a while.

with TcpProxy("localhost", 8883, delay=0.05) as proxy:       # 100 ms there and back
    proxy.address                                            # "localhost:40123"
    proxy.cut()                                              # ends every connection, and refuses new ones
    proxy.mend()
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

READ = 256 * 1024
HELD = 64 * 1024 * 1024
"""Bytes on their way in one direction: what a link of that delay holds, and more."""


class TcpProxy:
    """`delay` in seconds, for each direction. `connections` counts those that were let through."""

    def __init__(self, host: str, port: int, *, delay: float = 0.0) -> None:
        self._there, self._delay = (host, port), delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self.connections = 0

    @property
    def address(self) -> str:
        return f"localhost:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, sock=self._listening, limit=READ))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """End every connection, and every new one at once."""
        self._is_cut = True
        self._run(self._end_all())

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def _end_all(self) -> None:
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if not self._is_cut:
                self.connections += 1
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._there, limit=READ)
        pumps = [asyncio.create_task(self._pump(a, b)) for a, b in ((reader, there_writer), (there_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD // READ)
        sending = asyncio.create_task(self._send_later(line, writer))
        try:
            while data := await reader.read(READ):
                await line.put((self._loop.time() + self._delay, data))
            await line.put((self._loop.time() + self._delay, b""))
            await sending
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    async def _send_later(self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(due - self._loop.time())
            if not data:
                return
            writer.write(data)
            await writer.drain()

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
