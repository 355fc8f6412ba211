"""Large models that do as they are called: a real HTTP server whose behaviour is the model that is asked for.

    with CloudStub() as cloud: ...               # cloud.url, cloud.seen, cloud.open.set()

`ok` answers, `uncounted` too and tells no usage, `down` answers 500, `flaky` does so every second time, `limited` 429,
`hang` answers nothing until `open` is set or the client leaves, `endless` streams until the client leaves, `leak` and
`mail` and `ssn` stream what a filter should find cut in two, `break` ends in the middle, `short` too as if at its end.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
SPOKEN = {
    "ok": ["Hello", " there", ", ", "friend", "."],
    "leak": ["We call it pro", "ject  NAU", "TILUS, and ", "it ships in May. " * 8],
    "mail": ["Write to an", "na@exam", "ple.org about it. ", "She answers " * 12, "soon."],
    "ssn": ["Her social security number is 536", "-90-", "4399. ", "She answers " * 30, "soon."],
}


@dataclass
class CloudStub:
    """What was asked of it, and what it waits for."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """A client hung up on a `hang` or an `endless` answer."""

    def asked(self, model: str) -> int:
        return sum(body.get("model") == model for body in self.seen)


@contextmanager
def cloud_stub() -> Iterator[CloudStub]:
    stub = CloudStub()

    class Handler(_Handler):
        cloud = stub

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield stub
        stub.open.set()
        server.shutdown()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    cloud: CloudStub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "ok"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.cloud.seen.append(body)
        model = body["model"]
        if model == "down" or (model == "flaky" and self.cloud.asked("flaky") % 2):
            self._json(500, {"error": {"message": "out of order"}})
        elif model == "limited":
            self._json(429, {"error": {"message": "slow down"}})
        elif model == "hang":
            self._hang()
        elif self.path.endswith("/embeddings"):
            self._json(200, {"object": "list", "model": model, "data": [_embedding(0)], "usage": USAGE})
        elif body.get("stream"):
            self._stream(body)
        else:
            self._json(200, self._whole(body))

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        text = "".join(SPOKEN.get(body["model"], SPOKEN["ok"]))
        chat = self.path.endswith("/chat/completions")
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, **content}
        kind = "chat.completion" if chat else "text_completion"
        answer = {"id": "1", "object": kind, "created": 1, "model": body["model"], "choices": [choice]}
        return answer if body["model"] == "uncounted" else {**answer, "usage": USAGE}

    def _hang(self) -> None:
        self.connection.settimeout(0.05)
        while not self.cloud.open.is_set():
            try:
                if self.connection.recv(1) == b"":
                    self.cloud.left.set()
                    break
            except TimeoutError:
                continue
        self.close_connection = True

    def _stream(self, body: dict[str, Any]) -> None:
        model = body["model"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in SPOKEN.get(model, SPOKEN["ok"]):
                self._event({"choices": [_delta({"content": piece})]}, model)
            if model == "short":
                self.wfile.write(b"0\r\n\r\n")
                return
            if model == "break":
                self.close_connection = True
                return
            while model == "endless" and not self.cloud.open.wait(0.01):
                self._event({"choices": [_delta({"content": "more "})]}, model)
            self._event({"choices": [_delta({}, "stop")]}, model)
            if (body.get("stream_options") or {}).get("include_usage") and model != "uncounted":
                self._event({"choices": [], "usage": USAGE}, model)
            self._piece(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.cloud.left.set()
            self.close_connection = True

    def _event(self, value: dict[str, Any], model: str) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, **value}
        self._piece(b"data: " + json.dumps(whole).encode() + b"\n\n")

    def _piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _delta(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def _embedding(index: int) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": [0.5, -0.25, 1.0]}
