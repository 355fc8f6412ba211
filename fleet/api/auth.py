"""Who asks: an operator by bearer token, or a device by its certificate. Every route depends on one of these or is
public.

The public routes are the few that a device without a certificate needs, and the health check: `PUBLIC`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fastapi import Request
from sqlmodel import Session, select

from fleet.errors import Forbidden, Unauthorized
from fleet.services import Services, services_of
from fleet.store.database import Database
from fleet.store.files import write
from fleet.store.tables import Device, OperatorToken
from fleet.trust.ca import common_name, load_certificate
from fleet.trust.enrolment import hash_token
from wire.units import show_instant

PUBLIC = frozenset({"/healthz", "/.well-known/est/cacerts", "/.well-known/est/simpleenroll"})
TOKEN_FILE = "operator-token"  # noqa: S105  a file name


async def operator(request: Request) -> str:
    """Raises `Unauthorized` unless an operator's token came."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or hash_token(token.strip()) not in services_of(request).operators:
        raise Unauthorized(
            f"{request.method} {request.url.path}: an operator token is needed: send 'Authorization: Bearer <token>'; "
            f"the first token stands in {TOKEN_FILE} in the fleet's data folder"
        )
    return "operator"


async def device_or_operator(request: Request) -> str:
    """The id of the device whose certificate the connection showed, or `operator`.

    Raises `Unauthorized` without either, `Forbidden` for a certificate that is not the newest of a known device.
    """
    pem = _peer_certificate(request)
    if pem is None or "authorization" in request.headers:
        return await operator(request)
    services = services_of(request)
    return await services.serial.run(_device_of, services, pem)


def open_operator_tokens(data: Path, database: Database, clock: Callable[[], datetime]) -> frozenset[str]:
    """The hashes of all operator tokens. The first one is made here and written where only this user reads it."""
    with database.transaction() as session:
        if session.exec(select(OperatorToken)).first() is None:
            _add_first_token(session, data, clock())
        return frozenset(session.exec(select(OperatorToken.sha256)))


def _add_first_token(session: Session, data: Path, now: datetime) -> None:
    token = secrets.token_urlsafe(32)
    session.add(OperatorToken(sha256=hash_token(token), name="first", created=show_instant(now)))
    session.flush()
    write(data / TOKEN_FILE, token.encode() + b"\n")


def _peer_certificate(request: Request) -> str | None:
    chain = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or ()
    return next(iter(chain), None)


def _device_of(services: Services, pem: str) -> str:
    name = common_name(load_certificate(pem.encode()).subject)
    with services.database.transaction() as session:
        row = session.get(Device, name)
        if row is None or row.certificate.strip() != pem.strip():
            raise Forbidden(
                f"certificate of {name!r}: not the newest of a device of this fleet: enrol the device again"
            )
    return name
