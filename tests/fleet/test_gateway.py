"""The cloud tier through a stub upstream that is a real HTTP server."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_process import FleetProcess, initialise_trust, until

from fleet.errors import Malformed
from fleet.gateway.asked import CHAT, read

PATH = "/v1/chat/completions"
SECRET = "what the user said"
BODY = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}


class Stub(http.server.BaseHTTPRequestHandler):
    """Says what `mode` asks for, and keeps what it was sent."""

    mode = "answer"
    seen: list[tuple[str, str | None, bytes]] = []  # noqa: RUF012
    release = threading.Event()
    left = threading.Event()

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Stub.seen.append((self.path, self.headers["Authorization"], body))
        getattr(self, f"_{Stub.mode}")()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        self._json(200, {"choices": [{"message": {"content": "hello"}}]})

    def _refuse(self) -> None:
        self._json(401, {"error": "bad key"})

    def _limit(self) -> None:
        self._json(429, {"error": {"message": "slow down"}})

    def _stream(self) -> None:
        """The second piece comes only once the test has read the first one."""
        self._begin_stream()
        self._piece(b"data: one\n\n")
        assert Stub.release.wait(10)
        self._piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _page(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>a load balancer</html>")

    def _until_left(self) -> None:
        """Answers nothing, and notes when the fleet hangs up."""
        assert self.connection.recv(1) == b""
        Stub.left.set()

    def _stream_until_left(self) -> None:
        self._begin_stream()
        self._piece(b"data: one\n\n")
        self._until_left()

    def _break(self) -> None:
        self._begin_stream()
        self._piece(b"data: one\n\n")
        self.close_connection = True

    def _silent(self) -> None:
        Stub.release.wait(10)

    def _begin_stream(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

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


@pytest.fixture(scope="module")
def stub() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fleet(stub: http.server.ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "key").write_text("upstream-secret\n")
    address = f"http://127.0.0.1:{stub.server_port}/v1"
    settings = {
        "upstream": address,
        "upstream_key_file": folder / "key",
        "upstream_timeout": "1 s",
        "max_body": "8 KiB",
    }
    with FleetProcess(folder / "fleet", **settings) as process:
        yield process


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Stub.mode, Stub.seen = "answer", []
    Stub.release = threading.Event()


def ask(fleet: FleetProcess, body: object = None, **headers: str) -> tuple[int, Any]:
    all_headers = {"Authorization": f"Bearer {fleet.token}", **headers}
    status, data = fleet.request("POST", PATH, BODY if body is None else body, headers=all_headers)
    return status, json.loads(data)


def test_an_operators_request_reaches_the_upstream_with_the_fleets_key(fleet: FleetProcess) -> None:
    status, answer = ask(fleet)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "hello")
    ((path, key, body),) = Stub.seen
    assert (path, key) == (PATH, "Bearer upstream-secret")
    assert json.loads(body) == {**BODY, "max_tokens": 4096}  # a longest answer, so that its budget can be set aside
    assert fleet.api("GET", "/v1/models")["data"] == [{"id": "m"}]


def test_a_devices_certificate_is_enough_and_what_it_says_is_not_logged(
    fleet: FleetProcess, tmp_path: Path, enrolling: Any
) -> None:
    initialise_trust(fleet)
    with enrolling(fleet, tmp_path) as new_device:
        device = new_device("asker")
        status, body = fleet.request("POST", PATH, BODY, tls=device.tls())
        assert (status, b"hello" in body) == (200, True)
        (record,) = fleet.api("GET", "/api/v1/gateway/requests?who=device:asker")
        assert (record["outcome"], record["groups"], "text" in record) == ("answered", "default", False)
        assert SECRET not in fleet.log
        # The certificate opens the gateway and nothing else.
        assert fleet.request("GET", "/api/v1/devices", tls=device.tls())[0] == 401


def test_the_fleets_own_certificate_is_no_device(fleet: FleetProcess) -> None:
    context = fleet.tls()
    context.load_cert_chain(fleet.data / "ca" / "client.pem", fleet.data / "ca" / "client.key")
    status, body = fleet.request("POST", PATH, BODY, tls=context)
    assert (status, b"forbidden" in body) == (403, True)


def test_a_request_without_any_credential_is_refused(fleet: FleetProcess) -> None:
    assert fleet.request("POST", PATH, BODY)[0] == 401
    assert Stub.seen == []


def test_a_stream_is_passed_on_piece_by_piece(fleet: FleetProcess) -> None:
    Stub.mode = "stream"
    host, port = fleet.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=fleet.tls(), timeout=10)
    try:
        headers = {"Authorization": f"Bearer {fleet.token}"}
        connection.request("POST", PATH, json.dumps({**BODY, "stream": True}), headers)
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.readline() == b"data: one\n"
        Stub.release.set()
        assert answer.read() == b"\ndata: [DONE]\n\n"
    finally:
        connection.close()


def test_a_stream_that_breaks_off_is_not_taken_for_whole(fleet: FleetProcess) -> None:
    Stub.mode = "break"
    with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionError)):
        ask(fleet, {**BODY, "stream": True})
    until(lambda: "the upstream broke off" in fleet.log, what="a line in the log")
    assert "Traceback" not in fleet.log


@pytest.mark.parametrize("mode", ["until_left", "stream_until_left"])
def test_a_client_that_leaves_ends_the_upstreams_work(fleet: FleetProcess, mode: str) -> None:
    Stub.mode = mode
    Stub.left.clear()
    host, port = fleet.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=fleet.tls(), timeout=10)
    body = {**BODY, "stream": mode == "stream_until_left"}
    connection.request("POST", PATH, json.dumps(body), {"Authorization": f"Bearer {fleet.token}"})
    if mode == "stream_until_left":
        connection.getresponse().close()
    else:
        until(lambda: Stub.seen, what="the request at the upstream")
    connection.close()
    # Sooner than upstream_timeout, which would end it too.
    assert Stub.left.wait(0.8)
    assert "Traceback" not in fleet.log


def test_an_upstream_error_that_is_no_json_is_told_in_json(fleet: FleetProcess) -> None:
    Stub.mode = "page"
    status, body = ask(fleet)
    assert (status, body["error"]["code"]) == (502, "unavailable")
    assert "answered 503" in body["error"]["message"]
    assert "setting upstream" in body["error"]["message"]


def test_an_upstream_that_stays_silent_is_a_gateway_timeout(fleet: FleetProcess) -> None:
    Stub.mode = "silent"
    started = time.monotonic()
    status, body = ask(fleet)
    assert (status, body["error"]["code"]) == (504, "unavailable")
    assert time.monotonic() - started < 8
    Stub.release.set()


def test_an_upstream_that_refuses_our_key_is_told_to_the_operator(fleet: FleetProcess) -> None:
    Stub.mode = "refuse"
    status, body = ask(fleet)
    assert status == 502
    assert "upstream_key_file" in body["error"]["message"]


def test_an_upstreams_own_error_is_passed_on(fleet: FleetProcess) -> None:
    Stub.mode = "limit"
    assert ask(fleet) == (429, {"error": {"message": "slow down"}})


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"model": "m"}', b"[" * 5000])
def test_what_is_no_chat_completion_goes_no_further(fleet: FleetProcess, body: bytes) -> None:
    status, answer = ask(fleet, body)
    assert (status, answer["error"]["code"]) == (400, "malformed")
    assert Stub.seen == []


def test_a_body_of_millions_of_values_is_refused_before_it_is_read() -> None:
    """Attack: a device sends what takes seconds to read, again and again, and the fleet answers nobody meanwhile."""
    body, started = b'{"messages": [' + b"[]," * 5_000_000 + b"[]]}", time.monotonic()
    with pytest.raises(Malformed, match="send less"):
        read(CHAT, body)
    assert time.monotonic() - started < 0.5


def test_a_body_over_the_limit_goes_no_further(fleet: FleetProcess) -> None:
    status, answer = ask(fleet, b"x" * 9000)
    assert (status, answer["error"]["code"]) == (413, "too-large")
    assert "max_body" in answer["error"]["message"]
    status, answer = ask(fleet, iter_chunks(), **{"Transfer-Encoding": "chunked"})
    assert (status, answer["error"]["code"]) == (413, "too-large")


def iter_chunks() -> bytes:
    """9,000 bytes that do not say how many they are, as HTTP chunks."""
    return b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(9)) + b"0\r\n\r\n"


def test_without_an_upstream_the_answer_says_how_to_configure_one(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet") as fleet:
        status, body = ask(fleet)
    assert status == 503
    assert "set upstream" in body["error"]["message"]


def test_an_upstream_that_is_down_is_a_bad_gateway(tmp_path: Path) -> None:
    with FleetProcess(tmp_path / "fleet", upstream="http://127.0.0.1:9/v1") as fleet:
        status, body = ask(fleet)
    assert (status, body["error"]["code"]) == (502, "unavailable")
