"""The sockets of the local API: a Unix socket, and loopback TCP when asked. Never anything else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import uvicorn

from agent.errors import Unavailable
from agent.serving.api import LocalApi

MODE: Final = 0o660
"""Owner and group of the socket may ask; with systemd the group is that of the product app."""
GRACE: Final = 5
"""Seconds that requests in flight get at the end."""


class LocalServer:
    """The API behind its sockets. Raises `Unavailable` for an address that cannot be had."""

    def __init__(self, api: LocalApi, path: Path, tcp: str | None) -> None:
        self._path = path
        self._sockets = [_unix_socket(path)]
        if tcp is not None:
            try:
                self._sockets.append(_tcp_socket(tcp))
            except Unavailable:
                self._sockets[0].close()
                raise
        config = uvicorn.Config(
            api,
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = _Server(config)

    @property
    def tcp_address(self) -> str | None:
        """Host and port of the TCP socket, with the port that was chosen."""
        return "{}:{}".format(*self._sockets[1].getsockname()[:2]) if len(self._sockets) > 1 else None

    async def start(self) -> asyncio.Task[None]:
        """Answer from here on; the task ends with the server."""
        task = asyncio.create_task(self._server.serve(sockets=self._sockets), name="local API")
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return task

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Let requests in flight finish, then close."""
        self._server.should_exit = True
        await task
        self._path.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready, and leaves signals to the agent."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


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
