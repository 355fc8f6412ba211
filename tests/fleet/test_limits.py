"""The HTTPS door under floods: what is too fast, too large or too slow is turned away, and memory stays bounded."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fleet.api.limits import ANYBODYS, Door, Guarded, Limits
from fleet.api.server import Listener, Server
from fleet.api.tls import server_context
from fleet.errors import FleetError, TooMany
from fleet.limits import HELD, Buckets, source
from fleet.trust.ca import Authority

MIB = 1024 * 1024


@given(st.lists(st.floats(min_value=0, max_value=30), max_size=200))
def test_no_more_than_burst_and_rate_allow_ever_get_through(pauses: list[float]) -> None:
    buckets, now, passed = Buckets(rate=2, burst=5), 0.0, 0
    for pause in pauses:
        now += pause
        passed += buckets.take("a", now) == 0
    assert passed <= 5 + 2 * now + 1e-6


def test_the_wait_that_is_named_is_enough_and_others_are_not_held_up() -> None:
    buckets = Buckets(rate=2, burst=1)
    assert buckets.take("a", 10.0) == 0
    wait = buckets.take("a", 10.0)
    assert 0 < wait <= 0.5
    assert buckets.take("b", 10.0) == 0
    assert buckets.take("a", 10.0 + wait) == 0


def test_a_flood_of_names_takes_bounded_memory() -> None:
    """Attack: every request comes from another address."""
    buckets = Buckets(rate=1, burst=1)
    for n in range(3 * HELD):
        buckets.take(str(n), 0.0)
    assert len(buckets._levels) == HELD


def test_one_machine_with_a_network_of_addresses_counts_once() -> None:
    """Attack: every request comes from another IPv6 address of one network."""
    assert source("2001:db8:1:2::1") == source("2001:db8:1:2:ffff:ffff:ffff:ffff") != source("2001:db8:1:3::1")
    assert source("::ffff:192.0.2.7") == source("192.0.2.7") == "192.0.2.7"
    assert source("testclient") == "testclient"


async def read_all(request: Request) -> Response:
    return JSONResponse({"taken": len(await request.body())})


def answer(error: FleetError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=429 if isinstance(error, TooMany) else 413)


@asynccontextmanager
async def serving(
    limits: Limits | None = None, *, per_source: int = 200, tls: ssl.SSLContext | None = None, **door: Any
) -> AsyncIterator[int]:
    """The layers around a small application; gives the port."""
    app = Starlette(routes=[Route("/{path:path}", read_all, methods=["GET", "POST"])])
    settings: dict[str, Any] = {"rate": 1e6, "body": MIB, "blobs": "/blobs/", **door}
    wrapped = Door(app, answer=answer, **settings)
    protocol = type("Protocol", (Guarded,), {"limits": limits or Limits()})
    config = uvicorn.Config(wrapped, http=protocol, lifespan="off", log_config=None, ws="none")
    config.load()
    config.ssl = tls
    server = Server(config)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        listener = Listener(bound, most=1000, per_source=per_source)
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110  uvicorn offers no event
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def say(
    port: int, data: bytes, *, then: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
) -> bytes:
    """Everything the server says to these bytes until it hangs up or is quiet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if then is not None:
            with suppress(OSError):
                await then(writer)
        with suppress(OSError):
            async with asyncio.timeout(20):
                return await reader.read()
        return b""
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run(test: Callable[[], Awaitable[None]], loop: Loop = uvloop.new_event_loop) -> None:
    """On the loop that the fleet runs on, unless the test asks for another one."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_sound_request_passes() -> None:
    async def test() -> None:
        async with serving() as port:
            said = await say(port, request("/x", body=b"a" * 1000))
        assert said.startswith(b"HTTP/1.1 200")
        assert said.endswith(b'{"taken":1000}')

    run(test)


def test_a_body_over_the_limit_is_refused_announced_or_not() -> None:
    async def test() -> None:
        async with serving(body=1000) as port:
            announced = await say(port, request("/x", body=b"a" * 1001))
            chunked = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"a" * 1024
            unannounced = await say(port, chunked + b"\r\n0\r\n\r\n")
            blob = await say(port, request("/blobs/x", body=b"a" * 1001))
        assert announced.startswith(b"HTTP/1.1 413")
        assert not unannounced.startswith(b"HTTP/1.1 200")
        assert blob.startswith(b"HTTP/1.1 200")

    run(test)


def test_a_length_that_is_no_number_is_refused() -> None:
    async def test() -> None:
        async with serving() as port:
            said = await say(port, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nConnection: close\r\n\r\n")
        assert said.split()[1] in (b"400", b"413")

    run(test)


def test_too_many_requests_are_told_when_to_come_back() -> None:
    """Attack: a flood of requests."""

    async def test() -> None:
        async with serving(rate=1) as port:
            codes = [(await say(port, request("/x", method="GET"))).split()[1] for _ in range(12)]
            logins = [(await say(port, request("/api/v1/sessions"))).split()[1] for _ in range(2)]
        assert codes[:9] == [b"200"] * 9
        assert b"429" in codes[9:]
        assert b"429" in logins

    run(test)


def test_an_endless_header_is_cut_off_and_not_kept() -> None:
    """Attack: a header that never ends."""
    process = psutil.Process()

    async def test() -> None:
        sent = 0

        async def endless(writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            for n in range(64):
                writer.write(b"X-%d: " % n + b"a" * MIB + b"\r\n")
                await writer.drain()
                sent += MIB

        async with serving() as port:
            before = process.memory_info().rss
            said = await say(port, b"GET /x HTTP/1.1\r\n", then=endless)
            grown = process.memory_info().rss - before
        assert not said.startswith(b"HTTP/1.1 200")
        assert sent < 64 * MIB
        assert grown < 32 * MIB

    run(test)


@pytest.mark.parametrize("begun", [b"", b"GET /x HT", b"GET /x HTTP/1.1\r\nHost: x\r\n"])
def test_a_header_that_never_comes_ends_the_connection(begun: bytes) -> None:
    """Attack: many connections that say next to nothing (slowloris)."""

    async def test() -> None:
        async with serving(Limits(header_within=0.3)) as port:
            started = time.monotonic()
            said = await say(port, begun)
        assert said == b""
        assert time.monotonic() - started < 10

    run(test)


def test_a_header_that_drips_is_not_given_more_time_by_every_byte() -> None:
    """Attack: one byte of a header now and then."""

    async def test() -> None:
        async def drip(writer: asyncio.StreamWriter) -> None:
            for _ in range(100):
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)

        async with serving(Limits(header_within=0.5)) as port:
            started = time.monotonic()
            said = await say(port, b"GET /x HTTP/1.1\r\nX: ", then=drip)
        assert said == b""
        assert time.monotonic() - started < 4

    run(test)


def test_a_body_that_stops_ends_the_connection_and_one_that_goes_on_does_not() -> None:
    async def test() -> None:
        async def slow(writer: asyncio.StreamWriter) -> None:
            for _ in range(10):
                await asyncio.sleep(0.1)
                writer.write(b"a")

        async with serving(Limits(silence=0.5)) as port:
            head = b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
            going_on = await say(port, head, then=slow)
            stopped = await say(port, head + b"abc")
        assert going_on.endswith(b'{"taken":10}')
        assert stopped == b""

    run(test)


@LOOPS
def test_one_source_cannot_take_every_connection(loop: Loop) -> None:
    """Attack: connections are opened and held."""

    async def test() -> None:
        async with serving(per_source=5) as port:
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            refused = await say(port, request("/x", method="GET"))
            for _, writer in held:
                writer.close()
            async with asyncio.timeout(10):
                while not (await say(port, request("/x", method="GET"))).startswith(b"HTTP/1.1 200"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert refused == b""

    run(test, loop)


@LOOPS
def test_who_never_shakes_hands_counts_too(tmp_path: Path, loop: Loop) -> None:
    """Attack: connections on which the TLS handshake never begins, each of which would be held for a minute."""
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path, now)
    tls = server_context(authority.server(["127.0.0.1"], now), str(authority.believed_path))
    trusting = ssl.create_default_context(cafile=str(authority.believed_path))

    async def shakes_hands(port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        except OSError:
            return False
        writer.close()
        return True

    async def test() -> None:
        async with serving(per_source=5, tls=tls) as port:
            assert await shakes_hands(port)
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            refused = not await shakes_hands(port)
            for _, writer in held:
                writer.close()
            async with asyncio.timeout(10):
                while not await shakes_hands(port):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert refused

    run(test, loop)


@LOOPS
def test_a_handshake_that_fails_gives_its_place_back(tmp_path: Path, loop: Loop) -> None:
    """Attack: connections that begin with anything but TLS, or end in the middle of it, one after the other."""
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path, now)
    tls = server_context(authority.server(["127.0.0.1"], now), str(authority.believed_path))
    trusting = ssl.create_default_context(cafile=str(authority.believed_path))

    async def test() -> None:
        async with serving(per_source=2, tls=tls) as port:
            for begun in [request("/x", method="GET"), b"\x16\x03\x01\x02"] * 4:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(begun)
                writer.write_eof()
                with suppress(OSError):
                    await reader.read()  # the server has hung up
                writer.close()
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
                writer.write(request("/x", method="GET"))
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()

    run(test, loop)


@LOOPS
def test_a_server_that_stops_lets_go_of_who_still_shakes_hands(tmp_path: Path, loop: Loop) -> None:
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path, now)
    tls = server_context(authority.server(["127.0.0.1"], now), str(authority.believed_path))

    async def test() -> None:
        async with serving(tls=tls) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # Answered on another connection, this one was accepted before it.
            await say(port, b"no TLS")
        async with asyncio.timeout(10):
            with suppress(OSError):
                assert await reader.read() == b""
        writer.close()

    run(test, loop)


def test_what_anybody_may_send_is_small_whatever_others_may() -> None:
    """Attack: many large bodies to the routes that ask for no credential, each held and parsed."""

    async def test() -> None:
        async with serving(body=MIB) as port:
            codes = [
                (await say(port, request(path, body=b"a" * (ANYBODYS + 1)))).split()[1]
                for path in ("/api/v1/sessions", "/.well-known/est/simpleenroll", "/api/v1/renewals", "/x")
            ]
        assert codes == [b"413", b"413", b"413", b"200"]

    run(test)


def test_a_connection_is_kept_for_a_second_request() -> None:
    async def test() -> None:
        async with serving(Limits(header_within=0.4)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"200" in await reader.readline()
                await reader.readuntil(b'{"taken":0}')
            writer.close()

    run(test)
