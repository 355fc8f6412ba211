"""The server of the HTTPS door: uvicorn's, with connections counted from their first packet on, on any event loop.

`Listener` counts what it accepts, and `Accepting` gives it to the loop: a loop that accepts by itself, in C as uvloop
does, would pass by the count.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn

from fleet.limits import source as counted_as

_BACKLOG: Final = 2048
"""Connections that wait in the kernel."""
_AT_ONCE: Final = 100
"""Connections accepted before anybody else has a turn."""
_PAUSE: Final = 1.0
"""Seconds without accepting when the process has no descriptor left: asyncio waits as long."""
_log = logging.getLogger(__name__)


class _Counted(socket.socket):
    """A connection that tells when it is closed."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Close it."""
        super().close()
        self._tell()

    def detach(self) -> int:
        """Its descriptor, for uvloop, which closes that itself at this moment."""
        number = super().detach()
        self._tell()
        return number

    def _tell(self) -> None:
        told, self.on_close = self.on_close, None
        if told is not None:
            told()


class Listener(socket.socket):
    """A listening socket that takes at most `most` connections, and `per_source` from one address, at one time.

    It counts from the first packet on: whoever connects and never shakes hands is no `Guarded` yet, and would else hold
    as much memory as it liked.
    """

    def __init__(self, listening: socket.socket, *, most: int, per_source: int = 200) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._most, self._per_source = most, per_source
        self._sources: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, tuple[object, ...]]:
        """The next connection. Raises `ConnectionAbortedError` for one too many, which is closed."""
        plain, address = super().accept()
        source = counted_as(str(address[0]))
        if self._sources.total() >= self._most or self._sources[source] >= self._per_source:
            plain.close()
            raise ConnectionAbortedError(f"{source}: too many connections")
        connection = _Counted(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self._sources[source] += 1
        connection.on_close = lambda: self._forget(source)
        return connection, address

    def _forget(self, source: str) -> None:
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]


class Accepting:
    """Takes the connections of a listening socket until `close`; the loop closes each of them."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listening, self._protocol, self._tls = listening, protocol, tls
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._go_on()

    def close(self) -> None:
        """Accept no more, and let go of who still shakes hands."""
        self._stop()
        for task in self._beginning:
            task.cancel()

    async def wait_closed(self) -> None:
        """Return when nobody shakes hands any more."""
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def _stop(self) -> None:
        self._loop.remove_reader(self._listening)
        if self._pause is not None:
            self._pause.cancel()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as e:
                _log.error("https: no connection can be taken for %.0f s: %s", _PAUSE, e)
                self._stop()
                self._pause = self._loop.call_later(_PAUSE, self._go_on)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection), name="https connection")
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, ssl=self._tls)
        except OSError as e:  # an `ssl.SSLError` is one: who speaks no TLS of ours is not worth more than a line
            _log.debug("https: a connection ended before its handshake did: %s", e)


class Server(uvicorn.Server):
    """uvicorn's server on sockets of ours, without its signal handlers: the fleet decides when it stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from now on."""
        self.servers: list[Any] = [Accepting(one, self._connection, self.config.ssl) for one in sockets or ()]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
