"""What one client of the local API can make the server hold or wait for: sent ahead, never read, never ended."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
from http_story import Routes, ask, converse, run_story, until
from raw_http import RawClient, get, post

from agent.errors import Unavailable
from agent.serving import http1, server
from agent.serving.http1 import Connection


@pytest.fixture
def serve(short_folder: Path):
    return lambda story, **options: run_story(short_folder, story, **options)


def fast(monkeypatch: pytest.MonkeyPatch, **times: float) -> None:
    for name, seconds in {"HEAD_WITHIN": 30.0, "SILENCE": 30.0, "IDLE": 30.0, **times}.items():
        monkeypatch.setattr(http1, name, seconds)
    monkeypatch.setattr(server, "SWEEP", 0.02)


async def fill(client: RawClient, data: bytes, most: int) -> int:
    """Send until the server takes no more, or all are sent; how many."""
    client.socket.setblocking(False)
    sent, idle = 0, 0
    while sent < most and idle < 20:
        try:
            sent += client.socket.send(memoryview(data)[sent % len(data) :])
            idle = 0
        except BlockingIOError:
            idle += 1
            await asyncio.sleep(0.02)
    return sent


def held(connection: Connection) -> int:
    return sum(len(asked.request.body) for asked in connection._waiting)  # type: ignore[union-attr]


@pytest.mark.parametrize("first", [post("/later", b"a"), get("/endless")])
def test_bodies_sent_ahead_wait_in_the_clients_own_buffers(serve, first: bytes) -> None:
    """Attack: 50 bodies of the largest size behind a request that takes time, or whose reply is not read."""

    async def story(routes: Routes, path: Path) -> None:
        client = RawClient(path)
        client.socket.sendall(first)
        await until(lambda: routes.begun.is_set() or routes.events)
        body = post("/echo", b"x" * 1_000_000)
        sent = await fill(client, body, 50 * len(body))
        (connection,) = routes.hub.connections
        assert sent < 5 * len(body)
        assert held(connection) <= 3_000_000
        client.socket.close()

    serve(story, body=1_000_000)


def test_a_client_that_sent_one_request_ahead_is_still_seen_to_leave(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        client = RawClient(path)
        client.socket.sendall(post("/later", b"a") + post("/echo", b"b"))
        await routes.begun.wait()
        await asyncio.sleep(0.05)
        client.socket.close()
        await until(lambda: routes.events == ["cancelled"])

    serve(story)


def test_a_client_that_reads_nothing_buys_no_time_with_a_new_request(serve, monkeypatch) -> None:
    fast(monkeypatch, SILENCE=0.3)

    async def story(routes: Routes, path: Path) -> None:
        client = RawClient(path)
        client.socket.sendall(get("/endless"))
        (connection,) = await connections(routes)
        await until(lambda: connection._drained is not None)
        client.socket.sendall(b"GET /echo HTTP/1.1\r\na: b")
        await until(lambda: routes.events[-1:] == ["closed"], within=5)
        client.socket.close()

    serve(story)


async def connections(routes: Routes) -> list[Connection]:
    await until(lambda: routes.hub.connections)
    return list(routes.hub.connections)


CHUNKED = b"POST /fields HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


def test_a_head_that_comes_again_is_read_as_the_first_time(serve) -> None:
    """In one piece with its body, in two, two at once, or with other bytes at its end; the door looks every time."""
    refusals: list[Unavailable] = []

    async def story(routes: Routes, _path: Path) -> None:
        assert routes.tcp is not None
        host, _, port = routes.tcp.rpartition(":")

        def talk() -> list[tuple[int, bytes]]:
            with RawClient((host, int(port))) as client:
                found = [client.ask(post("/echo", body)) for body in (b"one", b"two", b"six")]
                split = post("/echo", b"ten")
                client.socket.sendall(split[:-2])
                time.sleep(0.05)
                client.socket.sendall(split[-2:])
                found.append(client.reply())
                client.socket.sendall(post("/echo", b"abc") + post("/echo", b"def"))
                found += [client.reply(), client.reply(), client.ask(post("/echo", b"ghi"))]
                found.append(client.ask(post("/echo", b"four")))
                found.append(client.ask(post("/echo", b"five").replace(b"localhost", b"127.0.0.1")))  # as long, another
                found.append(client.ask(post("/echo", b"one")))
                found.append(client.ask(post("/echo", b"two")))
                refusals.append(Unavailable("the door has closed"))
                found.append(client.ask(post("/echo", b"six")))
            return [(status, body) for status, _, body in found]

        *found, (status, said) = await asyncio.to_thread(talk)
        bodies = [b"one", b"two", b"six", b"ten", b"abc", b"def", b"ghi", b"four", b"five", b"one", b"two"]
        assert found == [(200, body) for body in bodies]
        assert status == 503
        assert b"the door has closed" in said

    serve(story, tcp="127.0.0.1:0", door=lambda _fields: refusals[0] if refusals else None)


def test_fields_behind_a_body_are_dropped(serve) -> None:
    """Attack: one that says who is asking, after the door has looked."""

    async def story(_routes: Routes, path: Path) -> None:
        ((status, _, body),) = await ask(path, CHUNKED + b"0\r\nhost: evil\r\nauthorization: x\r\n\r\n")
        assert (status, body) == (200, b"transfer-encoding")

    serve(story)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
        (CHUNKED + b"0\r\na: ", b"x" * 6000),
        (CHUNKED + b"1;", b"x" * 6000),
    ],
)
def test_what_stands_between_and_behind_chunks_has_the_limit_of_a_head(serve, head: bytes, piece: bytes) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        def talk() -> bytes:
            with RawClient(path) as client:
                client.socket.sendall(head)
                try:
                    for _ in range(20):
                        client.socket.sendall(piece)
                except OSError:
                    pass  # the server ended it
                client.socket.settimeout(3)
                return client.socket.recv(65536)

        assert (await asyncio.to_thread(talk)).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))

    serve(story)


def test_trailers_in_drops_do_not_move_the_deadline(serve, monkeypatch) -> None:
    fast(monkeypatch, SILENCE=0.4)

    async def story(_routes: Routes, path: Path) -> None:
        def talk() -> bytes:
            with RawClient(path) as client:
                client.socket.sendall(CHUNKED + b"0\r\n")
                client.socket.settimeout(0.1)
                for _ in range(50):
                    try:
                        client.socket.sendall(b"a: b\r\n")
                        return client.socket.recv(65536)
                    except TimeoutError:
                        continue
                return b"still open"

        assert (await asyncio.to_thread(talk)).startswith(b"HTTP/1.1 408")

    serve(story)


def test_a_head_that_comes_at_once_has_the_same_limit(serve) -> None:
    """Attack: a name repeated, each time joined to all before it."""

    async def story(_routes: Routes, path: Path) -> None:
        for fields in (b"a: b\r\n" * 10_000, b"a: " + b"x" * 40_000 + b"\r\n"):
            found = await converse(path, b"GET /echo HTTP/1.1\r\n" + fields + b"\r\n")
            assert found.startswith(b"HTTP/1.1 431")
        found = await converse(path, b"GET /echo?" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 431")

    serve(story)


def test_a_slow_body_in_small_chunks_is_taken(serve) -> None:
    """Chunk sizes in segments of their own, more of them together than a head may have."""

    async def story(_routes: Routes, path: Path) -> None:
        def talk() -> bytes:
            with RawClient(path) as client:
                client.socket.sendall(b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(20):
                    client.socket.sendall(b"1;" + b"y" * 3000 + b"\r\n")
                    client.socket.sendall(b"x\r\n")
                client.socket.sendall(b"0\r\n\r\n")
                return client.reply()[2]

        assert await asyncio.to_thread(talk) == b"x" * 20

    serve(story)


@pytest.mark.parametrize("status", [529, 520, 499])
def test_a_status_that_has_no_name_is_passed_on(serve, status: int) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        assert (await ask(path, post("/status", b"%d" % status)))[0][::2] == (status, b"so")

    serve(story)


def test_a_reply_that_cannot_be_written_ends_the_connection(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        assert await converse(path, get("/unwritable")) == b""
        await until(lambda: not routes.hub.connections)

    serve(story)


@pytest.mark.parametrize("path", ["/large", "/endless"])
def test_a_last_reply_that_is_never_read_does_not_keep_its_connection(serve, monkeypatch, path: str) -> None:
    fast(monkeypatch, SILENCE=0.2)

    async def story(routes: Routes, at: Path) -> None:
        with RawClient(at) as client:
            client.socket.sendall(b"GET %b HTTP/1.1\r\nconnection: close\r\n\r\n" % path.encode())
            await connections(routes)
            await until(lambda: not routes.hub.connections)

    serve(story)


def test_an_end_that_waits_for_its_reader_has_a_deadline(serve) -> None:
    """Accident: the rest of a reply is less than what pauses the writing."""

    async def story(routes: Routes, path: Path) -> None:
        with RawClient(path) as client:
            client.socket.sendall(post("/later", b"a", {"connection": "close"}))
            await routes.begun.wait()
            (connection,) = routes.hub.connections
            routes.go.set()
            await until(lambda: connection._task is None)
            assert connection.deadline < asyncio.get_running_loop().time() + http1.SILENCE + 1

    serve(story)


def test_who_fills_one_door_leaves_the_other_open(serve) -> None:
    """Attack: a process without the token holds as many connections as there may be over TCP."""

    async def story(routes: Routes, path: Path) -> None:
        held = [tcp(routes.tcp) for _ in range(2)]
        await until(lambda: len(routes.hub.connections) == 2)
        assert (await ask(path, get("/echo")))[0][0] == 200
        one_more = tcp(routes.tcp)
        assert (await asyncio.to_thread(one_more.recv, 100)).startswith(b"HTTP/1.1 503")
        for one in (*held, one_more):
            one.close()

    serve(story, tcp="127.0.0.1:0", door=lambda _fields: None, connections=2)


def test_who_has_shown_nothing_at_the_door_is_soon_gone(serve, monkeypatch) -> None:
    fast(monkeypatch, HEAD_WITHIN=0.2)

    async def story(routes: Routes, path: Path) -> None:
        silent, trusted = tcp(routes.tcp), RawClient(path)
        assert await asyncio.to_thread(silent.recv, 100) == b""
        assert len(routes.hub.connections) == 1
        silent.close()
        trusted.socket.close()

    serve(story, tcp="127.0.0.1:0", door=lambda _fields: None)


def tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)
