"""TLS towards the fleet: version 1.3, its own authorities and no system store, dates checked against trusted time.

OpenSSL is told not to look at validity periods: a device whose clock stands at 1970 could never ask the time.
`check_certificate` does it after connecting, with the time that the caller trusts.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from agent.errors import Expired, Malformed, Unavailable, Untrusted

NO_CHECK_TIME: Final = 0x200000
"""`X509_V_FLAG_NO_CHECK_TIME` of OpenSSL."""


def fleet_context(authorities: str) -> ssl.SSLContext:
    """A client context that believes these certificate authorities (PEM) only. Raises `Malformed`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError) as e:
        raise Malformed(f"CA certificates: not PEM: {e}") from e
    return context


def expiry(connection: object) -> datetime:
    """When the peer's certificate ends. Raises `Untrusted` without one."""
    found = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
    if not found:
        raise Untrusted("the connection is not encrypted, or gone")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)


def issuer(connection: object) -> x509.Name | None:
    """The name of the authority that issued the peer's certificate; None without one."""
    found = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
    return x509.load_der_x509_certificate(found).issuer if found else None


def check_certificate(connection: object, now: datetime) -> None:
    """The peer's certificate has not expired by trusted time. Raises `Untrusted`.

    One that is not valid yet passes: a device whose clock stands behind could never ask the time.
    """
    check_expiry(expiry(connection), now)


def check_expiry(expires: datetime, now: datetime) -> None:
    """A server certificate that ends then is good now. Raises `Untrusted`."""
    if now >= expires:
        raise Untrusted(f"the server's certificate expired {expires:%Y-%m-%d}: renew it on the fleet, or set the clock")


def host_and_port(address: str, where: str) -> tuple[str, int]:
    """`localhost:8883` in two. Raises `Malformed`."""
    try:
        parts = urlsplit(f"//{address}")
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise Malformed(f"{where}: expected host:port, got {address[:200]!r}")


def says_expired(fault: BaseException | str) -> bool:
    """Whether the peer ended the connection because our certificate ran out (alert 45 of RFC 8446)."""
    return "CERTIFICATE_EXPIRED" in str(fault).upper().replace(" ", "_")


@dataclass(frozen=True)
class Https:
    """One place for requests to the fleet: address, TLS context and the time that its certificate is held against."""

    address: str
    context: Callable[[], ssl.SSLContext]
    now: Callable[[], datetime]
    timeout: float
    """Longest silence, in seconds."""

    def post(
        self,
        path: str,
        body: bytes,
        headers: dict[str, str],
        connected: Callable[[socket.socket], None] = lambda _: None,
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """Send something, as `request` does."""
        return self.request("POST", path, body, headers, connected)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        connected: Callable[[socket.socket], None] = lambda _: None,
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """Ask; the caller reads the answer and closes the connection.

        `connected` hears of the socket before anything is sent. Raises `Untrusted` for the server's certificate,
        `Expired` for ours, `Unavailable` without an answer.
        """
        parts = urlsplit(self.address)
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, timeout=self.timeout, context=self.context()
        )
        try:
            connection.connect()
            check_certificate(connection.sock, self.now())
            connected(connection.sock)
            connection.request(method, path, body, headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            if says_expired(e):
                raise Expired(f"{self.address} refused this device's certificate: it expired") from e
            raise Unavailable(f"{self.address} did not answer: {e or type(e).__name__}") from e
        except Untrusted:
            connection.close()
            raise
