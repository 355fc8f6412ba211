"""What the libraries of the local API cost alone: `asyncio.Protocol`, httptools and the codec, and nothing else.

`python bare_server.py MODEL SOCKET` answers inference requests with binary or JSON tensors on a Unix socket, without
any of what an agent does: no limits, no counting, no telemetry, no door, no errors. It prints a line once it listens.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import httptools
import numpy as np
import onnxruntime as ort
import orjson

LENGTH = b"inference-header-content-length"


class Bare(asyncio.Protocol):
    """One connection."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._body: list[bytes] = []
        self._fields: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body, self._fields = [], {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        if LENGTH not in self._fields:
            self._answer(self._json(orjson.loads(body)["inputs"]), b"")
            return
        length = int(self._fields[LENGTH])
        head, raw = self._binary(orjson.loads(body[:length])["inputs"], body[length:])
        self._answer(head + raw, b"inference-header-content-length: %d\r\n" % len(head))

    def _json(self, inputs: list[dict[str, Any]]) -> bytes:
        feeds = {t["name"]: np.array(t["data"], np.float32).reshape(t["shape"]) for t in inputs}
        found = zip(self._names, self._session.run(self._names, feeds), strict=True)
        tensors = [{"name": n, "datatype": "FP32", "shape": v.shape, "data": v.reshape(-1)} for n, v in found]
        return orjson.dumps({"model_name": "kitchen", "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)

    def _binary(self, inputs: list[dict[str, Any]], raw: bytes) -> tuple[bytes, bytes]:
        feeds, at = {}, 0
        for tensor in inputs:
            size = tensor["parameters"]["binary_data_size"]
            feeds[tensor["name"]] = np.frombuffer(raw, np.float32, size // 4, at).reshape(tensor["shape"])
            at += size
        values = self._session.run(self._names, feeds)
        tensors = [
            {"name": n, "datatype": "FP32", "shape": v.shape, "parameters": {"binary_data_size": v.nbytes}}
            for n, v in zip(self._names, values, strict=True)
        ]
        head = orjson.dumps({"model_name": "kitchen", "outputs": tensors})
        return head, b"".join(v.tobytes() for v in values)

    def _answer(self, body: bytes, fields: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (fields, len(body), body))


async def main(model: str, path: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    server = await asyncio.get_running_loop().create_unix_server(lambda: Bare(session), path)
    print("listening", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
