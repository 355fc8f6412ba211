"""HTTPS of the fleet: the server's TLS, and the peer certificate in the request's scope.

uvicorn does not hand the peer's certificate on, so its protocol is extended by one step: `scope["extensions"]["tls"]`,
as the ASGI TLS extension 0.2 names it.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, cast

from fleet.api.limits import Guarded
from fleet.trust.ca import KeyPair


class TlsProtocol(Guarded):
    """uvicorn's protocol with the ASGI TLS extension."""

    def on_message_begin(self) -> None:
        """A request starts: its scope is there and empty."""
        super().on_message_begin()
        connection = self.transport.get_extra_info("ssl_object")
        if connection is not None:
            cast(dict[str, Any], self.scope)["extensions"]["tls"] = _describe(connection)


class ServerTls:
    """The TLS of a server that goes on serving while its certificate, or the authorities that it believes, change."""

    def __init__(self, pair: KeyPair, authorities: Path) -> None:
        self._pair, self._authorities = pair, authorities
        self.renew()
        self.context = self._newest
        """What to serve with. Each new connection is moved to the newest context: a context in use forgets nobody."""
        self.context.sni_callback = self._move

    def renew(self) -> None:
        """Read the files again, for all connections from now on. From any thread."""
        self._newest = server_context(self._pair, str(self._authorities))

    def _move(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL asks for every client, also for one that names no server.
        connection.context = self._newest


def server_context(pair: KeyPair, authority: str) -> ssl.SSLContext:
    """TLS 1.3 that asks for a certificate of the fleet's authority and goes on without one: enrolment has none yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # a resumed session would bring a certificate that ran out, or its authority, back to life
    return context


def _describe(connection: ssl.SSLObject) -> dict[str, Any]:
    der = connection.getpeercert(binary_form=True)
    return {"client_cert_chain": [ssl.DER_cert_to_PEM_cert(der)] if der else [], "client_cert_error": None}
