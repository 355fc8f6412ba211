"""An OpenAI-compatible endpoint: `python stub_upstream.py [PORT [SECONDS]]` prints its port and serves for ever.

Raw HTTP on asyncio, so that what it costs says nothing of the gateway. A stream has 22 pieces: one that opens it,
twenty with text, one that ends it; with the usage behind them where it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import sys

PIECES = 22
_BETWEEN = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0005
"""Seconds between two pieces: a token takes its time, and the pieces must not melt into one."""
_USAGE = {"prompt_tokens": 11, "completion_tokens": 20, "total_tokens": 31}
_HEAD = {"id": "chatcmpl-stub", "object": "chat.completion.chunk", "created": 1700000000, "model": "stub"}


def _choice(delta: dict[str, str], reason: str | None = None) -> bytes:
    value = {**_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


_EVENTS = [
    _choice({"role": "assistant", "content": ""}),
    *(_choice({"content": f"word{i} "}) for i in range(PIECES - 2)),
    _choice({}, "stop"),
]
_TELLS = b"data: " + json.dumps({**_HEAD, "choices": [], "usage": _USAGE}).encode() + b"\n\n"
_WHOLE = json.dumps(
    {
        **_HEAD,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 20}, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
).encode()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0
            )
            body = await reader.readexactly(length)
            if b'"stream":true' in body.replace(b" ", b""):
                await _stream(writer, tells=b"include_usage" in body)
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_WHOLE)
                )
                writer.write(_WHOLE)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _stream(writer: asyncio.StreamWriter, *, tells: bool) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for event in [*_EVENTS, *([_TELLS] if tells else []), b"data: [DONE]\n\n"]:
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(_BETWEEN)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _main(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
