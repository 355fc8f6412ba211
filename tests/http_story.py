"""Stories against the HTTP server of the local API: routes that answer at once, later, in parts or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

from raw_http import RawClient

from agent.errors import AgentError, Unavailable
from agent.serving.exchange import Reply, Request
from agent.serving.hub import Hub
from agent.serving.refusals import refusal
from agent.serving.server import LocalServer


class Routes:
    """What the tests ask. `events` says what happened, in order."""

    hub: Hub
    """Of the server that asks them."""
    tcp: str | None

    def __init__(self, body: int = 1000) -> None:
        self.body_limit = body
        self.events: list[str] = []
        self.statuses: dict[int, int] = {}
        self.go = asyncio.Event()
        self.begun = asyncio.Event()

    def refuse(self, path: str, error: AgentError) -> Reply:
        return refusal(path, error)

    def handle(self, request: Request) -> Reply | Coroutine[Any, Any, Reply]:
        if request.path == "/later":
            return self._later(request)
        if request.path == "/bug":
            raise KeyError(request.body.decode())
        replies: dict[str, Callable[[], Reply]] = {
            "/echo": lambda: Reply(200, "text/plain", request.body or b"nothing"),
            "/status": lambda: Reply(int(request.body), "text/plain", b"so"),
            "/large": lambda: Reply(200, "text/plain", b"x" * 5_000_000),
            "/fields": lambda: Reply(200, "text/plain", " ".join(request.headers).encode()),
            "/unwritable": lambda: Reply(200, "text/\u20ac", self._parts(request.path)),
            **dict.fromkeys(
                ("/parts", "/cut", "/endless"), lambda: Reply(200, "text/event-stream", self._parts(request.path))
            ),
        }
        if request.path in replies:
            return replies[request.path]()
        return refusal(request.path, Unavailable(f"{request.method} {request.path}"))

    async def _later(self, request: Request) -> Reply:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        return Reply(200, "text/plain", b"later " + request.body)

    async def _parts(self, path: str) -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b""
            yield b"two"
            if path == "/cut":
                raise Unavailable("the cloud broke off")
            while path == "/endless":
                self.events.append("part")
                yield b"x" * 100_000
                await asyncio.sleep(0)
        finally:
            self.events.append("closed")


Story = Callable[[Routes, Path], Coroutine[Any, Any, None]]


def run_story(folder: Path, story: Story, *, body: int = 1000, tcp: str | None = None, **options: Any) -> None:
    """With a server on the socket `s` in the folder."""

    async def run() -> None:
        routes = Routes(body)
        made = LocalServer(routes, folder / "s", tcp, **options)  # type: ignore[arg-type]
        routes.hub, routes.tcp = made._hub, made.tcp_address
        task = await made.start()
        try:
            async with asyncio.timeout(30):
                await story(routes, folder / "s")
        finally:
            routes.go.set()
            await made.stop(task)

    asyncio.run(run())


async def ask(path: Path, *requests: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Several requests on one connection, all sent before the first reply is read."""

    def talk() -> list[tuple[int, dict[str, str], bytes]]:
        with RawClient(path) as client:
            client.socket.sendall(b"".join(requests))
            return [client.reply() for _ in requests]

    return await asyncio.to_thread(talk)


async def converse(path: Path, data: bytes) -> bytes:
    """Everything that comes back until the server ends the connection."""

    def talk() -> bytes:
        with RawClient(path) as client:
            client.socket.sendall(data)
            found = b""
            while more := client.socket.recv(65536):
                found += more
            return found

    return await asyncio.to_thread(talk)


async def until(condition: Callable[[], object], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  it looks at several things
            await asyncio.sleep(0.005)
