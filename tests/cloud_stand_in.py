"""A stand-in for the fleet's gateway: a TLS server that asks for the device's certificate and keeps what it is sent.

with recording(authority) as cloud:                  # https://localhost:<port> is cloud.url
    cloud.says("light-on")                           # or cloud.answer = a function of the question
    assert cloud.texts == []                         # what users said, as far as it came here
with recording(None) as upstream:                    # a plain one, for a real gateway to ask
"""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.life.telemetry import WindowMeter
from agent.serving.cloud import Cloud
from agent.serving.router import Router
from agent.settings import AgentSettings


def no_cloud(meter: WindowMeter, folder: Path) -> Router:
    """The routing of a device that is offline."""
    cloud = Cloud("https://localhost:1", ssl.create_default_context, 5.0, lambda: datetime.now(UTC))
    return Router(cloud, lambda: False, meter.agreement, AgentSettings(state=folder, socket=folder / "s"))


class Recording:
    """What came, and what is answered to it: status and content of the one choice."""

    def __init__(self) -> None:
        self.url = ""
        self.questions: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, str]] = lambda _question: (200, "")

    @property
    def texts(self) -> list[str]:
        """The last message of each question."""
        return [q["messages"][-1]["content"] for q in self.questions]

    def says(self, label: str) -> None:
        self.answer = lambda _question: (200, json.dumps({"label": label}))


def tls_of(authority: Any, device: str = "kitchen-1") -> Callable[[], ssl.SSLContext]:
    """What a device shows to it."""
    context = ssl.create_default_context(cadata=authority.pem)
    context.load_cert_chain(*authority.files(device))
    return lambda: context


@contextmanager
def recording(authority: Any | None) -> Iterator[Recording]:
    """Answers until the end of the block."""
    cloud = Recording()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            cloud.questions.append(question)
            status, content = cloud.answer(question)
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            with suppress(OSError):  # a device that did not wait
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.files("localhost"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    cloud.url = f"{'http' if authority is None else 'https'}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
