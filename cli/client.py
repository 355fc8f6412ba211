"""The fleet's HTTP interface, as commands call it.

    fleet = Fleet.connect(data=Path("~/.shoal"))
    fleet.get("/api/v1/devices")

Where the fleet is comes from the data folder of a fleet on this machine, or from `SHOAL_FLEET_URL`, `SHOAL_TOKEN`
and `SHOAL_CA` (a PEM file) for one elsewhere.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cli.errors import BadInput, Refused, Unavailable

_TIMEOUT_S = 60.0


def default_data() -> Path:
    """The data folder when none is named: `$SHOAL_DATA`, else `~/.shoal`."""
    return Path(os.environ.get("SHOAL_DATA", "~/.shoal")).expanduser()


@dataclass(frozen=True)
class Fleet:
    """One fleet service: address, operator token and the CA that its certificate must come from."""

    url: str
    token: str
    tls: ssl.SSLContext

    @classmethod
    def connect(cls, data: Path | None = None) -> Fleet:
        """Find the fleet. Raises `BadInput` or `Unavailable`; nothing is sent yet."""
        url, token, ca = (os.environ.get(k) for k in ("SHOAL_FLEET_URL", "SHOAL_TOKEN", "SHOAL_CA"))
        if data is None and url:
            if not token or not ca:
                raise BadInput("SHOAL_FLEET_URL is set: SHOAL_TOKEN and SHOAL_CA (a PEM file) are needed with it")
            return cls(url, token, _context(Path(ca)))
        return cls._on_this_machine(data or default_data())

    @classmethod
    def _on_this_machine(cls, data: Path) -> Fleet:
        run = data / "run.json"
        try:
            port = json.loads(run.read_text())["https"]
            token = (data / "operator-token").read_text().strip()
        except FileNotFoundError as e:
            raise Unavailable(
                f"no fleet runs from {data}: start one with 'shoal up --data {data}', "
                "or set SHOAL_FLEET_URL, SHOAL_TOKEN and SHOAL_CA for one elsewhere"
            ) from e
        except (ValueError, KeyError) as e:
            raise BadInput(f"{run}: not what a fleet writes: restart it") from e
        return cls(f"https://localhost:{port}", token, _context(data / "ca" / "ca.pem"))

    def get(self, path: str) -> Any:
        """The JSON answer of a GET. Raises `Refused` or `Unavailable`."""
        return self._json("GET", path)

    def post(self, path: str, body: object) -> Any:
        """The JSON answer of a POST, sent with an idempotency key."""
        data = json.dumps(body).encode()
        return self._json(
            "POST", path, data, {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
        )

    def put_file(self, path: str, file: Path) -> None:
        """Upload a file, unless the fleet has it."""
        if self._send("HEAD", path, None, {}, accept=(200, 404))[0] == http.client.NOT_FOUND:
            with file.open("rb") as body:
                self._send("PUT", path, body, {"Content-Length": str(file.stat().st_size)})

    def _json(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        _, data = self._send(method, path, body, headers or {})
        return json.loads(data)

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str], accept: tuple[int, ...] = (200, 201, 204)
    ) -> tuple[int, bytes]:
        address = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port or 443, timeout=_TIMEOUT_S, context=self.tls
        )
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self.token}", **headers})
            response = connection.getresponse()
            data = response.read()
        except ssl.SSLCertVerificationError as e:
            raise Unavailable(
                f"{self.url}: its certificate does not come from the CA we know: {e.verify_message}"
            ) from e
        except (OSError, http.client.HTTPException) as e:
            raise Unavailable(f"{self.url}: the fleet does not answer ({e}): is 'shoal up' running?") from e
        finally:
            connection.close()
        if response.status not in accept:
            raise Refused(_reason(method, path, response.status, data))
        return response.status, data


def _context(ca: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as e:
        raise Unavailable(f"{ca}: cannot be read as the fleet's CA: {e}") from e
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _reason(method: str, path: str, status: int, data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{method} {path}: the fleet answered {status}"
