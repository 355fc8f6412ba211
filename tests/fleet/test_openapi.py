"""The fleet's own description of its HTTPS interface, held against the running fleet by schemathesis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fleet_process import FleetProcess, initialise_trust, tiny_bundle

from fleet.api.app import description
from fleet.api.policy import POLICY

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
ENDS_THE_TOKEN = "/api/v1/sessions/current"
"""It would make every later answer a 401."""


def test_every_route_of_the_policy_is_described() -> None:
    described = {(method.upper(), path) for path, methods in description()["paths"].items() for method in methods}
    assert described == set(POLICY)


class Answers(BaseHTTPRequestHandler):
    """A cloud tier that answers everything, so that a 503 of the gateway would be the fleet's own fault."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetProcess]:
    """With a release and a device, so that what names them has something to find."""
    folder = tmp_path_factory.mktemp("openapi")
    with (
        upstream() as address,
        FleetProcess(folder / "fleet", http_rate=10000, max_body="1 MiB", upstream=address) as fleet,
    ):
        publisher = initialise_trust(fleet)
        manifest, blobs = tiny_bundle()
        publisher.release(manifest, blobs)
        fleet.api("POST", "/api/v1/devices", {"device": "kitchen-1", "profile": "x86-64"})
        yield fleet


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("signed_in", [True, False], ids=["admin", "nobody"])
def test_no_server_error_and_no_undocumented_answer(fleet: FleetProcess, tmp_path: Path, signed_in: bool) -> None:
    """Attack: whatever a program can make up for the fleet's interface."""
    (tmp_path / "openapi.json").write_text(json.dumps(description()))
    program = Path(sys.executable).with_name("schemathesis")
    assert shutil.which(str(program))
    done = subprocess.run(
        [
            *(program, "run", "openapi.json", "--url", fleet.url, "--tls-verify", str(fleet.ca_file)),
            *("--checks", ",".join(CHECKS), "--exclude-path", ENDS_THE_TOKEN, "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "25" if signed_in else "3", "--seed", "7", "--no-color", "--warnings", "off"),
            *("--continue-on-failure", "--request-timeout", "30", "--report-json-path", "report.json"),
            *(("--header", f"Authorization: Bearer {fleet.token}") if signed_in else ()),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in fleet.log
