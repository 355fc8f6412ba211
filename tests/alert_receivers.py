"""Real receivers of alerts: a web server that can be made to fail, and a mail server with STARTTLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


@dataclass
class Hook:
    """What came to a web server. While `status` is not 200 it refuses; while `mute` is set it says nothing at all."""

    url: str = ""
    status: int = 200
    mute: threading.Event = field(default_factory=threading.Event)
    refused: int = 0
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.came]

    def of(self, what: str) -> list[dict[str, Any]]:
        return [one for one in self.documents if one["what"] == what]


@contextmanager
def hook(tls: ssl.SSLContext | None = None) -> Iterator[Hook]:
    made, stopping = Hook(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if made.mute.is_set():
                stopping.wait(30)
                return
            if made.status == 200:
                made.came.append((dict(self.headers), body))
            else:
                made.refused += 1
            self.send_response(made.status)
            if made.status in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Mailbox:
    """What came to a mail server, and with which password."""

    port: int = 0
    came: list[Message] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    refuses: bool = False


@contextmanager
def mailbox(tls: ssl.SSLContext, user: str, password: str) -> Iterator[Mailbox]:
    made = Mailbox()

    class Handler:
        async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
            if made.refuses:
                return "451 try again later"
            made.encrypted.append(session.ssl is not None)
            made.came.append(message_from_bytes(envelope.content))
            return "250 OK"

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (user.encode(), password.encode())
        return AuthResult(success=right)

    def serve() -> None:
        asyncio.set_event_loop(loop)
        made.port = loop.run_until_complete(listen()).sockets[0].getsockname()[1]
        ready.set()
        loop.run_forever()
        loop.close()

    async def listen() -> asyncio.Server:
        return await loop.create_server(session, "127.0.0.1", 0)

    def session() -> SMTP:
        return SMTP(
            Handler(), hostname="localhost", tls_context=tls, require_starttls=True, auth_required=True,
            authenticator=authenticate, auth_require_tls=True, loop=loop,
        )  # fmt: skip

    loop, ready = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
