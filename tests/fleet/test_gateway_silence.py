"""An upstream that falls silent in the middle of its answer, over a real connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from fleet.gateway.asked import CHAT
from fleet.gateway.config import UpstreamConfig
from fleet.gateway.upstreams import Failed, Upstream

LIMIT = 0.4
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = [HEAD, *(b"1\r\n%d\r\n" % i for i in range(6)), b"0\r\n\r\n"]


@asynccontextmanager
async def upstream(pieces: Sequence[bytes], between: float) -> AsyncIterator[Upstream]:
    """One that says these pieces with pauses, then nothing more, until its client hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(between)
        await reader.read()
        left.set()
        writer.close()

    left = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one = Upstream(UpstreamConfig(name="u", url=f"http://127.0.0.1:{port}/v1", timeout=LIMIT))
    async with server:
        try:
            yield one
        finally:
            await one.close()
            async with asyncio.timeout(10):
                await left.wait()


def test_an_answer_that_takes_longer_than_the_longest_silence_comes_whole() -> None:
    async def ask() -> bytes:
        async with upstream(WHOLE, LIMIT / 4) as one:
            return await one.whole(await one.post(CHAT, b"{}"))

    started = time.monotonic()
    assert asyncio.run(ask()) == b"012345"
    assert time.monotonic() - started > LIMIT


@pytest.mark.parametrize("said", [0, 1, 3])
def test_one_that_falls_silent_fails_and_is_hung_up_on(said: int) -> None:
    """Before its head, behind it, in the middle of its body."""

    async def ask() -> Failed:
        async with upstream(WHOLE[:said], 0) as one:
            with pytest.raises(Failed) as failed:
                await one.whole(await one.post(CHAT, b"{}"))
        return failed.value

    failed = asyncio.run(ask())
    assert (failed.why, failed.sent) == ("slow", True)


def test_a_reader_that_takes_its_time_is_no_silence_of_the_upstream() -> None:
    async def ask() -> bytes:
        async with upstream(WHOLE, 0) as one:
            answer = await one.post(CHAT, b"{}")
            reading = one.reading(answer)
            got = await reading.piece()
            await asyncio.sleep(2.5 * LIMIT)
            while piece := await reading.piece():
                got += piece
            reading.close()
            answer.release()
            return got

    assert asyncio.run(ask()) == b"012345"
