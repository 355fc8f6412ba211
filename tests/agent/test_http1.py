"""The HTTP server of the local API on a real Unix socket, with routes that answer at once, later, in parts or never."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from http_story import Routes, ask, converse, run_story, until
from raw_http import RawClient, get, post

from agent.serving import http1, http_words, server
from agent.serving.server import LocalServer


@pytest.fixture
def serve(short_folder: Path) -> Callable[..., None]:
    return lambda story, **options: run_story(short_folder, story, **options)


def test_requests_sent_ahead_are_answered_in_order(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        asked = [post("/echo", b"%d" % i) for i in range(50)]
        found = asyncio.create_task(ask(path, post("/later", b"first"), *asked))
        await routes.begun.wait()
        await until(lambda: any(connection._waiting for connection in routes.hub.connections))
        routes.go.set()
        assert [body for _, _, body in await found] == [b"later first", *(b"%d" % i for i in range(50))]

    serve(story)


def test_a_body_in_chunks_and_one_with_a_length_are_the_same(serve) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        chunked = b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        (one,), (other,) = await ask(path, chunked), await ask(path, post("/echo", b"abcde"))
        assert one == other == (200, {"content-type": "text/plain", "content-length": "5"}, b"abcde")

    serve(story)


def test_head_is_answered_without_a_body_and_the_connection_goes_on(serve) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        head = b"HEAD /echo HTTP/1.1\r\n\r\n"
        found = await converse(path, head + b"GET /echo?a=b HTTP/1.1\r\nconnection: close\r\n\r\n")
        first, second, body = found.split(b"\r\n\r\n")
        assert b"content-length: 7" in first
        assert second.startswith(b"HTTP/1.1 200 OK")
        assert body == b"nothing"

    serve(story)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"POST /echo HTTP/1.1\r\ncontent-length: 1001\r\n\r\n", 413, b"limit of 1000 bytes"),
        (b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001, 413, b"limit of 1000"),
        (b"GET /echo HTTP/1.1\r\na: " + b"x" * 40_000, 431, b"over 32768 bytes"),
        (b"GET /echo HTTP/1.1\r\n" + b"a: b\r\n" * 8000, 431, b"over 32768 bytes"),
        (b"nonsense\r\n\r\n", 400, b"not HTTP/1.1"),
        (b"GET /echo HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400, b"not HTTP/1.1"),
        (b"GET /v1/echo HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", 400, b'"code":"badrequest"'),
        (b"GET /echo HTTP/1.0\r\n\r\n", 200, b"nothing"),
        (b"GET /echo HTTP/1.1\r\nconnection: close\r\n\r\nGET /echo HTTP/1.1\r\n\r\n", 200, b"nothing"),
        (b"GET /echo HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", 200, b"nothing"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n", 503, b"CONNECT"),
        (b"GET http://localhost/echo HTTP/1.1\r\nconnection: close\r\n\r\n", 200, b"nothing"),
    ],
)
def test_what_ends_a_connection_says_why_before(serve, data: bytes, status: int, said: bytes) -> None:
    """Accident and attack: too large, not HTTP, or made to be read in two ways by two servers."""

    async def story(_routes: Routes, path: Path) -> None:
        found = await converse(path, data)
        assert found.startswith(b"HTTP/1.1 %d " % status), found
        assert b"connection: close" in found
        assert said in found
        assert found.count(b"HTTP/1.1 ") == 1

    serve(story)


def test_a_refusal_waits_for_the_answers_before_it(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        found = asyncio.create_task(converse(path, post("/later", b"a") + b"nonsense\r\n\r\n"))
        await routes.begun.wait()
        routes.go.set()
        assert [part.split()[1] for part in (await found).split(b"HTTP/1.1 ")[1:3]] == [b"OK", b"Bad"]

    serve(story)


def test_a_body_that_the_client_asks_about_first_is_refused_unread_or_called_for(serve) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        def talk() -> bytes:
            with RawClient(path) as client:
                client.socket.sendall(b"POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
                said = client.socket.recv(1000)
                client.socket.sendall(b"ab")
                return said + client.reply()[2]

        assert await asyncio.to_thread(talk) == http_words.CONTINUE + b"ab"
        data = b"POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5000\r\n\r\n"
        assert (await converse(path, data)).startswith(b"HTTP/1.1 413")

    serve(story)


def test_a_client_that_leaves_cancels_its_request(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        client = RawClient(path)
        client.socket.sendall(post("/later", b"a"))
        await routes.begun.wait()
        client.socket.close()
        await until(lambda: routes.events == ["cancelled"])

    serve(story)


def test_a_stream_comes_in_chunks_and_a_cut_one_has_no_end(serve) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        whole = await converse(path, b"GET /parts HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert whole.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert (await converse(path, get("/cut"))).endswith(b"3\r\ntwo\r\n")
        old = await converse(path, b"GET /parts HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\nonetwo")
        assert b"chunked" not in old

    serve(story)


def test_a_stream_is_made_no_faster_than_it_is_read_and_ends_with_its_reader(serve) -> None:
    async def story(routes: Routes, path: Path) -> None:
        client = RawClient(path)
        client.socket.sendall(get("/endless"))
        await until(lambda: routes.events)
        made = -1
        while made != len(routes.events):  # until the buffers between are full
            made = len(routes.events)
            await asyncio.sleep(0.1)
        assert made < 50
        await asyncio.to_thread(client.socket.recv, 1_000_000)
        await until(lambda: len(routes.events) > made)
        client.socket.close()
        await until(lambda: routes.events[-1] == "closed")

    serve(story)


def test_silent_clients_are_told_or_cut(serve, monkeypatch) -> None:
    """Attack: a header, a body or a reading that never ends (slow loris). A connection without a request just ends."""
    for name in ("HEAD_WITHIN", "SILENCE", "IDLE"):
        monkeypatch.setattr(http1, name, 0.2)
    monkeypatch.setattr(server, "SWEEP", 0.05)

    async def story(routes: Routes, path: Path) -> None:
        begun = time.monotonic()
        assert (await converse(path, b"GET /echo HTTP/1.1\r\na: b")).startswith(b"HTTP/1.1 408")
        assert (await converse(path, b"POST /echo HTTP/1.1\r\ncontent-length: 9\r\n\r\nab")).startswith(b"HTTP/1.1 408")
        assert await converse(path, b"") == b""
        assert (await converse(path, get("/echo"))).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < 5
        client = RawClient(path)
        client.socket.sendall(get("/endless"))
        await until(lambda: routes.events[-1:] == ["closed"])
        client.socket.close()

    serve(story)


def test_a_request_that_takes_long_is_not_taken_for_silence(serve, monkeypatch) -> None:
    for name in ("HEAD_WITHIN", "SILENCE", "IDLE"):
        monkeypatch.setattr(http1, name, 0.05)
    monkeypatch.setattr(server, "SWEEP", 0.02)

    async def story(routes: Routes, path: Path) -> None:
        found = asyncio.create_task(ask(path, post("/later", b"a")))
        await asyncio.sleep(0.3)
        routes.go.set()
        assert (await found)[0][0] == 200

    serve(story)


def test_one_connection_more_than_may_be_is_told_so_at_once(serve) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        held = [RawClient(path) for _ in range(3)]
        assert (await asyncio.to_thread(held[0].ask, get("/echo")))[0] == 200
        status, headers, body = (await ask(path, get("/echo")))[0]
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"'connections'" in body
        for one in held:
            one.socket.close()
        assert (await asyncio.to_thread(_asked_in_time, path)) == 200

    serve(story, connections=3)


def _asked_in_time(path: Path) -> int:
    until_when = time.monotonic() + 10
    while time.monotonic() < until_when:
        with RawClient(path) as client:
            status = client.ask(get("/echo"))[0]
        if status == 200:
            return status
    return 0


def test_a_bug_is_answered_and_logged_without_a_word_of_the_input(serve, caplog) -> None:
    async def story(_routes: Routes, path: Path) -> None:
        with caplog.at_level(logging.ERROR):
            status, _, body = (await ask(path, post("/bug", b"my secret")))[0]
        assert status == 500
        assert b"secret" not in body
        assert "POST /bug failed: KeyError" in caplog.text
        assert "secret" not in caplog.text

    serve(story)


def test_at_the_end_requests_in_flight_are_answered_and_idle_connections_end(short_folder) -> None:
    async def story() -> None:
        routes, path = Routes(), short_folder / "s"
        made = LocalServer(routes, path, None)  # type: ignore[arg-type]
        task = await made.start()
        idle = socket.socket(socket.AF_UNIX)
        idle.connect(str(path))
        found = asyncio.create_task(ask(path, post("/later", b"a")))
        await routes.begun.wait()
        stopping = asyncio.create_task(made.stop(task))
        assert await asyncio.to_thread(idle.recv, 10) == b""
        idle.close()
        assert not stopping.done()
        routes.go.set()
        status, headers, _ = (await found)[0]
        assert (status, headers["connection"]) == (200, "close")
        await stopping
        assert not path.exists()

    asyncio.run(story())


def test_at_the_end_nobody_is_waited_for_longer_than_the_grace(short_folder, monkeypatch) -> None:
    monkeypatch.setattr(server, "GRACE", 0.1)

    async def story() -> None:
        routes, path = Routes(), short_folder / "s"
        made = LocalServer(routes, path, None)  # type: ignore[arg-type]
        task = await made.start()
        client = RawClient(path)
        client.socket.sendall(post("/later", b"a"))
        await routes.begun.wait()
        await made.stop(task)
        await until(lambda: routes.events == ["cancelled"])
        client.socket.close()

    asyncio.run(story())
