"""A client of the local API that costs next to nothing: requests made once, blocking sockets, no library between.

with RawClient(folder / "agent.sock") as client:
    status, headers, body = client.ask(post("/v2/models/kitchen/infer", data))
load(path, request, connections=8, total=5000)          # keeps so many requests under way; every answer is 200
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

Address = Path | tuple[str, int]


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"host": "localhost", "content-length": str(len(body)), **(headers or {})}
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + body


def get(path: str, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"host": "localhost", **(headers or {})}
    return (f"GET {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items()) + "\r\n").encode()


def connected(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET)
    made.settimeout(30)
    made.connect(str(address) if isinstance(address, Path) else address)
    if not isinstance(address, Path):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


class RawClient:
    """One connection, kept open."""

    def __init__(self, address: Address) -> None:
        self.socket = connected(address)
        self._left = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self.socket.sendall(request)
        return self.reply()

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        """The next reply, which has a length."""
        while (whole := _whole(self._left)) is None:
            data = self.socket.recv(256 * 1024)
            if not data:
                raise ConnectionError(f"the server ended within a reply: {self._left[:200]!r}")
            self._left += data
        data, self._left = self._left[:whole], self._left[whole:]
        head, _, body = data.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        pairs = (field.partition(": ") for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, body

    def time(self, request: bytes, rounds: int) -> list[float]:
        """Seconds of each of so many requests, one after the other, until the last byte of its reply is here."""
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            self.socket.sendall(request)
            data, ended = self.socket.recv(256 * 1024), time.perf_counter()
            while _whole(data) is None:
                data += self.socket.recv(256 * 1024)
                ended = time.perf_counter()
            times.append(ended - started)
            assert data.startswith(b"HTTP/1.1 200"), data[:300]
        return times


def _whole(data: bytes) -> int | None:
    """Bytes of the first reply in it, None while it is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[: end + 2].lower()
    at = head.find(b"content-length:")
    length = int(head[at + 15 : head.find(b"\r\n", at)])
    return end + 4 + length if len(data) >= end + 4 + length else None


def load(address: Address, request: bytes, *, connections: int, total: int) -> None:
    """Ask so often in all, with one request under way on each connection."""
    chooser = selectors.DefaultSelector()
    sockets = [connected(address) for _ in range(connections)]
    try:
        held: dict[socket.socket, bytes] = {}
        for one in sockets:
            chooser.register(one, selectors.EVENT_READ)
            one.sendall(request)
            held[one] = b""
        begun, done = connections, 0
        while done < total:
            for key, _ in chooser.select(30):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                held[one] += one.recv(256 * 1024)
                if _whole(held[one]) is None:
                    continue
                assert held[one].startswith(b"HTTP/1.1 200"), held[one][:300]
                held[one] = b""
                done += 1
                if begun < total:
                    one.sendall(request)
                    begun += 1
    finally:
        chooser.close()
        for one in sockets:
            one.close()
