"""The fleet's HTTP interface, as commands call it.

    fleet = Fleet.connect(data=Path("~/.shoal"))
    fleet.get("/api/v1/devices")

Where the fleet is, the first that is there: the data folder that an option names; `SHOAL_FLEET_URL`, `SHOAL_TOKEN` and
`SHOAL_CA` (a PEM file); the login of `shoal login`; the default data folder of a fleet on this machine.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cli.errors import BadInput, Refused, Unavailable
from cli.session import Session

_TIMEOUT_S = 60.0
_PAGE = 500


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
            return cls(url, token, context(Path(ca)))
        session = Session.load() if data is None else None
        if session is not None:
            return cls.of(session)
        return cls._on_this_machine(data or default_data())

    @classmethod
    def of(cls, session: Session) -> Fleet:
        """The fleet that a person logged in to. Raises `Unavailable` once the login ran out."""
        if datetime.now(UTC) >= datetime.fromisoformat(session.expires):
            raise Unavailable(
                f"the login of {session.name} at {session.url} ran out: run `shoal login {session.name}` again, "
                "or `shoal logout` to go on without"
            )
        return cls(session.url, session.token, context(session.ca))

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
        return cls(f"https://localhost:{port}", token, context(data / "ca" / "ca.pem"))

    def get(self, path: str) -> Any:
        """The JSON answer of a GET. Raises `Refused` or `Unavailable`."""
        return self._json("GET", path)

    def devices(self, **asked: str) -> list[dict[str, Any]]:
        """Every device of a query (`status`, `group`, `where`), read page by page."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"after": found[-1]["device"]} if found else {}
            page = self.get(f"/api/v1/devices?{urlencode({**asked, **after, 'limit': _PAGE})}")
            found += page
            if len(page) < _PAGE:
                return found

    def get_bytes(self, path: str) -> bytes:
        """The answer of a GET as it comes. Raises `Refused` or `Unavailable`."""
        return self._send("GET", path, None, {})[1]

    def post(self, path: str, body: object) -> Any:
        """The JSON answer of a POST, sent with an idempotency key."""
        data = json.dumps(body).encode()
        return self._json(
            "POST", path, data, {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
        )

    def delete(self, path: str) -> Any:
        """The JSON answer of a DELETE. Raises `Refused` or `Unavailable`."""
        return self._json("DELETE", path)

    def put_file(self, path: str, file: Path) -> None:
        """Upload a file, unless the fleet has it."""
        if self._send("HEAD", path, None, {}, accept=(200, 404))[0] == http.client.NOT_FOUND:
            with file.open("rb") as body:
                self._send("PUT", path, body, {"Content-Length": str(file.stat().st_size)})

    def _json(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        _, data = self._send(method, path, body, headers or {})
        return json.loads(data) if data else None

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str], accept: tuple[int, ...] = (200, 201, 204)
    ) -> tuple[int, bytes]:
        address = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port or 443, timeout=_TIMEOUT_S, context=self.tls
        )
        try:
            credential = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request(method, path, body, {**credential, **headers})
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
        if response.status == http.client.TOO_MANY_REQUESTS:
            raise Unavailable(_reason(method, path, response.status, data))
        if response.status not in accept:
            raise Refused(_reason(method, path, response.status, data))
        return response.status, data


def context(ca: Path | str) -> ssl.SSLContext:
    """TLS 1.3 to a fleet whose CA stands in a PEM file, or is a PEM text. Raises `Unavailable`."""
    try:
        pem = ca.read_text() if isinstance(ca, Path) else ca
        made = ssl.create_default_context(cadata=pem)
    except (OSError, ValueError, ssl.SSLError) as e:
        where = ca if isinstance(ca, Path) else "the CA of the login"
        raise Unavailable(f"{where}: cannot be read as the fleet's CA: {e}") from e
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def _reason(method: str, path: str, status: int, data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{method} {path}: the fleet answered {status}"
