"""Chunks over HTTPS from a server that does not do its part: the device takes what is whole, and leaves it alone."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from agent.errors import Unavailable
from agent.identity.tls import Https, fleet_context
from agent.install.ranges import REST, Ranges
from wire.chunks import ChunkList, ChunkRef, digest
from wire.secrecy import TAG

CHUNKS = ChunkList(
    blob="sha256:" + "1" * 64,
    size=300,
    chunks=tuple(ChunkRef(digest=digest(bytes([i])), size=100) for i in range(3)),
)
BODY = bytes(range(100 + TAG)) * 3


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every range with `status`, says that it has `says` bytes and sends `sends`."""

    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 206
    says: ClassVar[int] = len(BODY)
    sends: ClassVar[int] = len(BODY)
    asked: ClassVar[list[str]] = []
    held: ClassVar[threading.Event | None] = None

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers['Range']}")
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.says))
        self.end_headers()
        self.wfile.write(BODY[: self.sends])
        self.close_connection = True
        if self.held is not None:
            self.wfile.flush()
            self.held.wait(20)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def server(authority: Any, **changes: Any) -> Iterator[tuple[Ranges, type[Server], list[float]]]:
    handler = type("Changed", (Server,), {"asked": [], **changes})
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files("localhost"))
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    now = [1000.0]
    https = Https(
        f"https://localhost:{listening.server_port}",
        lambda: fleet_context(authority.pem),
        lambda: datetime.now(UTC),
        timeout=20,
    )
    try:
        yield Ranges(https, clock=lambda: now[0]), handler, now
    finally:
        if handler.held is not None:
            handler.held.set()
        listening.shutdown()
        thread.join()
        listening.server_close()


async def fetched(ranges: Ranges, first: int, last: int, into: list[tuple[int, bytes]]) -> None:
    async for index, data in ranges.chunks(CHUNKS, first, last):
        into.append((index, data))


def test_neighbours_come_in_one_request_and_are_told_apart(authority) -> None:
    got: list[tuple[int, bytes]] = []
    with server(authority, says=2 * 116, sends=2 * 116) as (ranges, handler, _):
        asyncio.run(fetched(ranges, 1, 2, got))
        assert ranges.ready
        assert handler.asked == [f"/api/v1/blobs/{CHUNKS.blob}/chunks bytes=116-347"]
    assert got == [(1, BODY[:116]), (2, BODY[116:232])]


@pytest.mark.parametrize(
    "changes", [{"status": 429}, {"status": 404}, {"status": 200}, {"says": len(BODY) - 1}, {"says": len(BODY) + 1}]
)
def test_a_server_that_answers_anything_else_is_left_alone_for_a_while(authority, changes) -> None:
    with server(authority, **changes) as (ranges, _, now):
        with pytest.raises(Unavailable, match="to a range of it"):
            asyncio.run(fetched(ranges, 0, 2, []))
        assert not ranges.ready
        now[0] += REST
        assert ranges.ready


def test_whole_chunks_of_an_answer_that_breaks_off_count(authority) -> None:
    got: list[tuple[int, bytes]] = []
    with server(authority, sends=2 * 116 + 50) as (ranges, _, _):
        with pytest.raises(Unavailable, match="broke off"):
            asyncio.run(fetched(ranges, 0, 2, got))
        assert not ranges.ready
    assert [index for index, _ in got] == [0, 1]


def test_a_server_that_is_not_there_is_left_alone(authority) -> None:
    with server(authority) as (ranges, _, _):
        pass
    with pytest.raises(Unavailable, match="did not answer"):
        asyncio.run(fetched(ranges, 0, 2, []))
    assert not ranges.ready


def test_a_download_that_is_cancelled_does_not_wait_for_a_server_that_stalls(authority) -> None:
    got: list[tuple[int, bytes]] = []

    async def story(ranges: Ranges) -> float:
        task = asyncio.create_task(fetched(ranges, 0, 2, got))
        async with asyncio.timeout(15):
            while not got:  # noqa: ASYNC110  a list cannot tell
                await asyncio.sleep(0.01)
        begun = asyncio.get_running_loop().time()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return asyncio.get_running_loop().time() - begun

    with server(authority, sends=116 + 10, held=threading.Event()) as (ranges, handler, _):
        assert asyncio.run(story(ranges)) < 10
        assert handler.held is not None
        assert not handler.held.is_set()
