"""A client of an agent's local API, over its Unix socket.

client = Client(folder / "agent.sock")
status, value = client.ask("GET", "/v2/models/kitchen")
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class Client:
    """What a product app does; blocking, so it is called in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        try:
            connection.sock.connect(str(self.path))
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            read = response.read()
            kind = response.getheader("content-type")
            return response.status, json.loads(read) if kind == "application/json" else read
        finally:
            connection.close()

    def infer(self, *texts: str, **fields: object) -> tuple[int, Any]:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
        return self.ask("POST", "/v2/models/kitchen/infer", {"inputs": [tensor], **fields})
