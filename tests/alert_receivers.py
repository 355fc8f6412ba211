"""Real receivers of alerts: a web server that can be made to fail, and a mail server with STARTTLS."""

from __future__ import annotations

import base64
import contextlib
import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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


class MailServer(socketserver.TCPServer):
    """SMTP (RFC 5321) with STARTTLS (RFC 3207) and AUTH PLAIN (RFC 4954), one connection after the other."""

    def __init__(self, tls: ssl.SSLContext, user: str, password: str) -> None:
        self.tls, self.box = tls, Mailbox()
        self.right = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        super().__init__(("127.0.0.1", 0), _Session)
        self.box.port = self.server_address[1]


class _Session(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.known = self.encrypted = False
        with contextlib.suppress(OSError):  # a client that does not trust the certificate goes
            self.say("220 ready")
            while (line := self.rfile.readline().decode().strip()) and self.answer(line.upper().split()[0], line):
                pass

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())
        self.wfile.flush()

    def answer(self, word: str, line: str) -> bool:
        match word:
            case "EHLO":
                self.say("250-localhost\r\n250 " + ("AUTH PLAIN" if self.encrypted else "STARTTLS"))
            case "STARTTLS":
                self.encrypt()
            case "AUTH":
                self.known = self.encrypted and line.rsplit(maxsplit=1)[-1] == self.server.right
                self.say("235 known" if self.known else "535 wrong password")
            case "DATA":
                self.say("354 go on")
                self.take(b"".join(iter(self.rfile.readline, b".\r\n")))
            case "QUIT":
                self.say("221 bye")
            case _:
                self.say("250 fine" if self.known else "530 who are you")
        return word != "QUIT"

    def encrypt(self) -> None:
        self.say("220 go ahead")
        # What is wrapped is detached: `self.request` is what the server closes in the end.
        self.request = self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.encrypted = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.connection.close()

    def take(self, content: bytes) -> None:
        box = self.server.box
        if box.refuses or not self.known:
            self.say("451 try again later")
            return
        box.encrypted.append(self.encrypted)
        box.came.append(message_from_bytes(content))
        self.say("250 taken")


@contextmanager
def mailbox(tls: ssl.SSLContext, user: str, password: str) -> Iterator[Mailbox]:
    with MailServer(tls, user, password) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.box
        finally:
            server.shutdown()
            thread.join()
