"""HTTPS of the fleet: the server's TLS, and the peer certificate in the request's scope.

uvicorn does not hand the peer's certificate on, so its protocol is extended by one step: `scope["extensions"]["tls"]`,
as the ASGI TLS extension 0.2 names it.
"""

from __future__ import annotations

import ssl
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet.trust.ca import KeyPair


class TlsProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the ASGI TLS extension."""

    def on_message_begin(self) -> None:
        """A request starts: its scope is there and empty."""
        super().on_message_begin()
        connection = self.transport.get_extra_info("ssl_object")
        if connection is not None:
            cast(dict[str, Any], self.scope)["extensions"] = {"tls": _describe(connection)}


def server_context(pair: KeyPair, authority: str) -> ssl.SSLContext:
    """TLS 1.3 that asks for a certificate of the fleet's authority and goes on without one: enrolment has none yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _describe(connection: ssl.SSLObject) -> dict[str, Any]:
    der = connection.getpeercert(binary_form=True)
    return {"client_cert_chain": [ssl.DER_cert_to_PEM_cert(der)] if der else [], "client_cert_error": None}
