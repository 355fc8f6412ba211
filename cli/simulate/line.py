"""A device's line without a thread of its own: the real one, its sockets read and written by one asyncio loop.

A thread for each of thousands of connections would not do. What is said on the line, and who is believed, is that of
`agent.line.link`; connecting blocks, so a few threads share it. The weather of the plan is made here: delay, loss and
cuts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from paho.mqtt.client import MQTTMessage

from agent.identity.credentials import Credentials
from agent.identity.tls import Https
from agent.install.ranges import Ranges
from agent.line.link import BACK_OFF, KEEPALIVE, MqttLink
from wire import topics
from wire.chunks import ChunkList
from wire.errors import WireError

log = logging.getLogger("cli.simulate.line")

GOODBYE: Final = 2.0
"""Seconds for the last packets before a connection is closed."""


@dataclass
class Weather:
    """What happens on the way, and how often it did. `delay` in seconds, `loss` a share of chunks and answers."""

    chance: random.Random
    delay: float = 0.0
    loss: float = 0.0
    lost: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    range_bytes: int = 0
    """Bytes of chunks that came over HTTPS, where nothing is lost by plan."""

    def loses(self, topic: str, size: int) -> bool:
        """Count a message that came; whether it is lost."""
        kind = _kind(topic)
        if kind is topics.Chunk:
            self.chunks, self.chunk_bytes = self.chunks + 1, self.chunk_bytes + size
        if kind in (topics.Chunk, topics.Ack) and self.chance.random() < self.loss:
            self.lost += 1
            return True
        return False


def _kind(topic: str) -> type[topics.Topic] | None:
    try:
        return type(topics.parse(topic))
    except WireError:
        return None


class CountedRanges(Ranges):
    """The other way for chunks, counted."""

    def __init__(self, https: Https, weather: Weather) -> None:
        super().__init__(https)
        self._weather = weather

    async def chunks(self, chunks: ChunkList, first: int, last: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """As the real one."""
        async with aclosing(super().chunks(chunks, first, last)) as found:
            async for index, data in found:
                self._weather.range_bytes += len(data)
                yield index, data


class Line(MqttLink):
    """`pool` are the threads that connect. Callbacks run on the loop, as they do for the real one."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        now: Callable[[], datetime],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[str, bytes], None],
        pool: Executor,
        weather: Weather,
    ) -> None:
        super().__init__(credentials, now=now, on_up=on_up, on_down=on_down, on_message=on_message)
        self._pool, self._weather = pool, weather
        self._thread = threading.get_ident()
        self._gone = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._work: asyncio.Task[None] | None = None
        self._client.on_socket_register_write = lambda *_: self._write_soon()
        self._client.on_socket_close = lambda _client, _data, sock: self._let_go(sock)

    # --- the real line's beginning and end, without its thread ------------------------------------------------------

    def start(self) -> None:
        """Connect in the background, and again for ever."""
        self._client.connect_async(self._host, self._port, keepalive=KEEPALIVE)
        self._work = asyncio.create_task(self._stay_connected(), name="line")

    async def stop(self) -> None:
        """Say goodbye and close."""
        self._stopping = True
        if self._up:
            self._say(online=False)
            self._client.disconnect()
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await self._gone.wait()
        await self._end()

    async def drop(self) -> None:
        """End without a word, as when the power is gone: the broker says that this device is away."""
        self._stopping = True
        self._client.cut()
        await self._end()

    def cut(self, seconds: float) -> None:
        """No line for so long."""
        self._free.clear()
        self._loop.call_later(seconds, self._free.set)
        self._client.cut()

    def look(self) -> None:
        """Say that we are there, or notice that the broker is not: to be called every few seconds."""
        if self._client.socket() is not None:
            self._client.loop_misc()

    async def _end(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._client._sock_close()  # noqa: SLF001  paho closes a socket only from the loop that it runs itself

    # --- the loop in the place of paho's ----------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        shortest, longest = BACK_OFF
        pause = float(shortest)
        while not self._stopping:
            await self._free.wait()
            self._gone.clear()
            if await self._connect():
                await self._gone.wait()
                pause = float(shortest)
            await asyncio.sleep(self._weather.chance.uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, longest)

    async def _connect(self) -> bool:
        attempt = self._loop.run_in_executor(self._pool, self._client.reconnect)
        try:
            await asyncio.shield(attempt)
        except OSError:
            return False  # said by the real line already
        except asyncio.CancelledError:
            await asyncio.wait([attempt])  # the thread goes on with the socket: it is closed after it
            attempt.exception()
            raise
        sock = self._client.socket()
        if not isinstance(sock, ssl.SSLSocket):
            return False
        self._loop.add_reader(sock, self._read)
        self._write()
        return True

    def _read(self) -> None:
        """Everything that came: what TLS has decrypted already never wakes the loop again."""
        sock = self._client.socket()
        while isinstance(sock, ssl.SSLSocket):
            self._client.loop_read()
            if self._client.socket() is not sock or not sock.pending():  # type: ignore[union-attr]
                return

    def _write_soon(self) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        sock = self._client.socket()
        if sock is None:
            return
        self._client.loop_write()
        if self._client.socket() is not sock:
            return
        if self._client.want_write():
            self._loop.add_writer(sock, self._write)
        else:
            self._loop.remove_writer(sock)

    def _let_go(self, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._gone.set()

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """paho runs on the loop here."""
        callback(*args)

    def _received(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        """The real line hands over to the loop here; this is the loop."""
        topic, payload = message.topic, bytes(message.payload)
        if self._weather.loses(topic, len(payload)):
            return
        if self._weather.delay:
            self._loop.call_later(self._weather.delay, self._arrive, topic, payload)
        else:
            self._arrive(topic, payload)

    def _arrive(self, topic: str, payload: bytes) -> None:
        if not self._stopping:
            self._on_message(topic, payload)
