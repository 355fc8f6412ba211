"""Routes for the certificate authorities: which there are, the next one, the change to it, the end of an old one.

A change takes four steps, and no device is lost on the way: make the next one; have the offline signers name it in
targets metadata (`shoal release rotate authorities`), which tells every device; use it; and, when every device has
renewed its certificate, remove the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from sqlmodel import Session, col, or_, select

from fleet.errors import Conflict, Untrusted
from fleet.services import Services, services_of
from fleet.store.tables import Device
from fleet.trust.ca import Authority, load_certificate
from fleet.trust.issuer import Issuer
from wire.units import show_instant

router = APIRouter(prefix="/api/v1/authorities")


@router.get("")
async def list_authorities(request: Request) -> list[dict[str, Any]]:
    """Every authority that is believed: the one in use first. `devices`: how many it gave the certificate they use."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.post("", status_code=201)
async def make_next(request: Request) -> list[dict[str, Any]]:
    """Make the next authority, unless one is prepared already."""
    services = services_of(request)
    return await services.serial.run(_change, services, lambda: services.authority.prepare(services.clock()))


@router.post("/{fingerprint}/use")
async def use(request: Request, fingerprint: str) -> list[dict[str, Any]]:
    """Issue from this authority from now on: devices, HTTPS port and broker. Targets metadata must name it."""
    services = services_of(request)
    used = await services.serial.run(_change, services, lambda: _use(services, fingerprint))
    services.broker.end_connections()  # a device sees the change when it connects, and renews soon
    return used


@router.delete("/{fingerprint}")
async def remove(request: Request, fingerprint: str, force: bool = False) -> list[dict[str, Any]]:
    """Believe an authority no longer. Refused while devices use its certificates; by force these must enrol again."""
    services = services_of(request)
    left = await services.serial.run(_change, services, lambda: _remove(services, fingerprint, force=force))
    services.broker.end_connections()  # whoever has its key may be on the broker, in the name of any device
    return left


def _list(services: Services) -> list[dict[str, Any]]:
    authority = services.authority
    with services.database.transaction() as session:
        using = _using(session, authority)
    return [
        {
            "fingerprint": issuer.fingerprint,
            "subject": issuer.certificate.subject.rfc4514_string(),
            "expires": show_instant(issuer.certificate.not_valid_after_utc),
            "state": authority.state_of(issuer),
            "named": _is_named(services, issuer),
            "devices": using[issuer.fingerprint],
        }
        for issuer in authority.issuers()
    ]


def _change(services: Services, change: Callable[[], object]) -> list[dict[str, Any]]:
    """Change the folder, then everything that serves from it: lists first, or the broker would refuse everybody."""
    change()
    services.revocations.reissue()
    services.certificates.replace()
    return _list(services)


def _use(services: Services, fingerprint: str) -> None:
    issuer = services.authority.find(fingerprint)
    if not _is_named(services, issuer):
        raise Untrusted(
            f"authority {fingerprint[:16]}: the published targets metadata does not name it, so devices would not "
            "believe it: have the offline signers run `shoal release rotate authorities`, and publish"
        )
    services.authority.use(fingerprint)


def _remove(services: Services, fingerprint: str, *, force: bool) -> None:
    authority = services.authority
    authority.find(fingerprint)
    with services.database.transaction() as session:
        count = _using(session, authority)[fingerprint]
    if count and not force and fingerprint != authority.current.fingerprint:
        raise Conflict(
            f"authority {fingerprint[:16]}: {count} devices use a certificate of it: wait until they have renewed, "
            "or remove it by force and enrol them again"
        )
    authority.remove(fingerprint)


def _using(session: Session, authority: Authority) -> Counter[str]:
    """How many devices use, or are about to use, a certificate of each authority."""
    used = select(Device.certificate, Device.next_certificate)
    count: Counter[str] = Counter()
    for pems in session.exec(used.where(or_(col(Device.certificate) != "", col(Device.next_certificate) != ""))):
        issuers = (authority.issuer_of(load_certificate(pem.encode())) for pem in pems if pem)
        count.update({issuer.fingerprint for issuer in issuers if issuer is not None})
    return count


def _is_named(services: Services, issuer: Issuer) -> bool:
    trust = services.repository.trust
    named = trust.authorities() if trust is not None else ()
    return any(load_certificate(pem.encode()) == issuer.certificate for pem in named)
