"""A process with several clients of a plain server: what the benchmark of the transfer compares with.

    python tests/plain_clients.py SPEC.json      # says ready, waits for a line on stdin, says done for each client

The spec: `kind` (`mqtt`: paho subscribers of topic `file`; `https`: one GET each), `port`, `states` (folders of
enrolled devices, whose certificates they show), `stores`, `size` and `digest` of the file, `first` and `step` (numbers
for their names). As an agent does, each writes the file to its own folder and checks its digest.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

READ = 64 * 1024


class Client(threading.Thread):
    """One client; its thread ends when it has the file."""

    def __init__(self, spec: dict[str, Any], number: int) -> None:
        super().__init__()
        self.spec, self.number = spec, number
        identity = Path(spec["states"][number]) / "identity"
        self.tls = ssl.create_default_context(cafile=str(identity / "ca.pem"))
        self.tls.load_cert_chain(identity / "cert.pem", identity / "key.pem")
        self.go = threading.Event()
        store = Path(spec["stores"][number])
        store.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = (store / "plain").open("wb")
        self.hash, self.size = hashlib.sha256(), 0
        self.complete = threading.Event()

    def connect(self) -> None:
        if self.spec["kind"] == "mqtt":
            ready = threading.Event()
            self.client = mqtt.Client(
                CallbackAPIVersion.VERSION2, client_id=f"c{self.spec['first'] + self.spec['step'] * self.number}"
            )
            self.client.tls_set_context(self.tls)
            self.client.on_message = lambda _c, _d, message: self.take(message.payload)
            self.client.on_subscribe = lambda *_: ready.set()
            self.client.connect("localhost", self.spec["port"])
            self.client.loop_start()
            self.client.subscribe("file", 1)
            assert ready.wait(30)
        self.start()

    def run(self) -> None:
        self.go.wait()
        if self.spec["kind"] == "https":
            self.download()
        assert self.complete.wait(600)
        assert "sha256:" + self.hash.hexdigest() == self.spec["digest"]
        self.file.close()
        _tell({"event": "done", "ended": time.monotonic()})
        if self.spec["kind"] == "mqtt":
            self.client.loop_stop()

    def download(self) -> None:
        connection = http.client.HTTPSConnection("localhost", self.spec["port"], context=self.tls)
        connection.request("GET", "/file")
        response = connection.getresponse()
        assert response.status == 200
        while data := response.read(READ):
            self.take(data)
        connection.close()

    def take(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)
        if self.size == self.spec["size"]:
            self.complete.set()


def main(spec: dict[str, Any]) -> None:
    clients = [Client(spec, number) for number in range(len(spec["states"]))]
    for client in clients:
        client.connect()
    _tell({"event": "ready"})
    sys.stdin.readline()
    for client in clients:
        client.go.set()
    for client in clients:
        client.join()


def _tell(event: dict[str, Any]) -> None:
    """A line for the parent, in one write: several clients may be done at once."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
