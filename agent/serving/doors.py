"""Who may use the local API over TCP: whoever shows this device's token, and no page of the web.

Any process of the machine can connect to loopback, and so can a browser that shows a hostile page: the token keeps the
first out, the Host and Origin fields the second, which may have had its own name resolved to 127.0.0.1 (DNS rebinding).
The Unix socket has its permissions for that.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.errors import AgentError, NotFound
from agent.files import write_whole, writing
from agent.serving.refusals import Forbidden, Unauthorised

TOKEN_FILE: Final = "api.token"  # noqa: S105  the name of a file
NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a client on this machine calls it."""


def read_token(state: Path) -> str:
    """The token of a device. Raises `NotFound` when there is none yet."""
    path = state / TOKEN_FILE
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise NotFound(f"{path}: no token: the agent makes it when it is started with --tcp ({e})") from e
    if not token:
        raise NotFound(f"{path}: empty: remove it, and start the agent again with --tcp")
    return token


def token_of(state: Path) -> str:
    """The token of a device, made when there is none. Raises `Unavailable` when it cannot be written."""
    path = state / TOKEN_FILE
    if not path.exists():
        with writing(path):
            write_whole(path, f"{secrets.token_urlsafe(32)}\n".encode())
    return read_token(state)


class TcpDoor:
    """Looks at the header fields of every request over TCP."""

    def __init__(self, token: str, path: Path) -> None:
        self._token = token.encode()
        self._path = path

    def __call__(self, fields: Mapping[str, str]) -> AgentError | None:
        """Why this request may not come in; None when it may."""
        host, origin = fields.get("host", ""), fields.get("origin")
        if _name(host) not in NAMES:
            return Forbidden(f"Host {host[:80]!r}: over TCP this device answers to localhost or 127.0.0.1 alone")
        if origin is not None and _name(origin.partition("://")[2]) not in NAMES:
            return Forbidden(f"Origin {origin[:80]!r}: a page from elsewhere may not ask this device")
        scheme, _, token = fields.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
            return Unauthorised(
                f"over TCP a request needs 'Authorization: Bearer <token>', the token is in {self._path}"
            )
        return None


def _name(host: str) -> str:
    """Without its port, in lower case."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()
