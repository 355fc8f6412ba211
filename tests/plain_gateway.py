"""The least that a gateway does: `python plain_gateway.py UPSTREAM_PORT [CERTIFICATE KEY]` prints its port and serves.

Starlette on uvicorn and uvloop, with TLS where it has a certificate, and aiohttp's client: the body in, the answer out,
a stream piece by piece. It asks nobody who they are, limits, looks at and records nothing.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


async def _serve(upstream: str, certificate: str | None = None, key: str | None = None) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session:

        async def passed(request: Request) -> Response:
            answer = await session.post(
                f"http://127.0.0.1:{upstream}{request.url.path}",
                data=await request.body(),
                headers={"Content-Type": "application/json"},
            )
            kind = answer.headers["Content-Type"]
            if kind.startswith("text/event-stream"):
                return StreamingResponse(_pieces(answer), media_type=kind)
            return Response(await answer.read(), media_type=kind)

        app = Starlette(routes=[Route("/v1/chat/completions", passed, methods=["POST"])])
        config = uvicorn.Config(
            app, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
            ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            print(listening.getsockname()[1], flush=True)
            await uvicorn.Server(config).serve(sockets=[listening])


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for piece in answer.content.iter_any():
        yield piece
    answer.release()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(*sys.argv[1:]))
