"""The sockets of the local API: a Unix socket, and loopback TCP when asked. Never anything else.

server = LocalServer(api, settings.socket, settings.tcp, door=TcpDoor(token))
task = await server.start()       # ends with the server
await server.stop(task)
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.errors import Unavailable
from agent.serving.api import LocalApi
from agent.serving.http1 import Connection
from agent.serving.hub import Door, Hub

MODE: Final = 0o660
"""Owner and group of the socket may ask; with systemd the group is that of the product app."""
GRACE: Final = 5.0
"""Seconds that requests in flight get at the end."""
SWEEP: Final = 1.0
"""Seconds between two looks for clients that are silent."""
BACKLOG: Final = 128
"""Connections that the kernel holds until they are taken."""


class LocalServer:
    """The API behind its sockets. Raises `Unavailable` for an address that cannot be had.

    `door` says who may come in over TCP; who may open the Unix socket, its permissions say.
    """

    def __init__(
        self, api: LocalApi, path: Path, tcp: str | None, *, door: Door | None = None, connections: int = 256
    ) -> None:
        self._path = path
        self._unix = _unix_socket(path)
        self._tcp: socket.socket | None = None
        if tcp is not None:
            try:
                self._tcp = _tcp_socket(tcp)
            except Unavailable:
                self._unix.close()
                raise
        self._door = door
        self._hub = Hub(api, body=api.body_limit, most=connections)
        api.statuses = self._hub.statuses
        self._servers: list[asyncio.Server] = []
        self._stopping = asyncio.Event()

    @property
    def tcp_address(self) -> str | None:
        """Host and port of the TCP socket, with the port that was chosen."""
        return None if self._tcp is None else "{}:{}".format(*self._tcp.getsockname()[:2])

    async def start(self) -> asyncio.Task[None]:
        """Answer from here on; the task ends with the server."""
        loop = asyncio.get_running_loop()
        self._servers = [
            await loop.create_unix_server(lambda: Connection(self._hub, None, loop), sock=self._unix, backlog=BACKLOG)
        ]
        if self._tcp is not None:
            self._servers.append(
                await loop.create_server(
                    lambda: Connection(self._hub, self._door, loop), sock=self._tcp, backlog=BACKLOG
                )
            )
        return asyncio.create_task(self._serve(), name="local API")

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Let requests in flight finish, then close."""
        self._stopping.set()
        await task
        self._path.unlink(missing_ok=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            self._hub.sweep(loop.time())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), SWEEP)
        for server in self._servers:
            server.close()
        self._hub.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hub.empty.wait(), GRACE)
        for connection in list(self._hub.connections):
            connection.abort()
        await asyncio.sleep(0)  # their transports close on the next turn of the loop


def _unix_socket(path: Path) -> socket.socket:
    """The state folder's lock says that no other agent is here: an old socket file is a leftover."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~MODE)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        made.bind(str(path))
    except OSError as e:
        made.close()
        raise Unavailable(f"{path}: the local API's socket cannot be made: {e.strerror or e}: choose --socket") from e
    finally:
        os.umask(before)
    return made


def _tcp_socket(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host.strip("[]"), int(port)))
    except OSError as e:
        made.close()
        raise Unavailable(f"{address}: the local API cannot listen there: {e.strerror}: choose another --tcp") from e
    return made
