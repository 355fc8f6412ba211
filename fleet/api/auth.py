"""Who asks: a person or program by bearer token, a device by its certificate; and what the audit log hears of it.

    caller = caller_of(request)                       # in a route: who passed the gate
    tell(request, subject="device kitchen-1")         # in a route: what the path does not say

`fleet.api.gate` fills in the `Visit` before a route runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import cast

from fastapi import Request
from starlette.requests import HTTPConnection

from fleet.access import Caller
from fleet.api.known import Known
from fleet.api.policy import Rule
from fleet.errors import FleetError, Forbidden, Unauthorized
from fleet.services import Services, services_of
from fleet.tokens import WHERE_FROM
from fleet.trust.adoption import adopt
from fleet.trust.ca import load_certificate
from fleet.trust.identity import device_of

DEVICE_ROLE = "device"
_log = logging.getLogger(__name__)


@dataclass
class Visit:
    """A request on its way: the row of the policy that it matched, who asks, and what the audit log should know."""

    template: str = ""
    rule: Rule | None = None
    caller: Caller | None = None
    """None for a public route, and as long as nobody is known."""
    who: str = ""
    subject: str = ""
    fault: str = ""


def visit_of(request: HTTPConnection) -> Visit:
    """The visit of a request. Raises `Forbidden` for one that did not come through the gate."""
    visit = request.scope.get("state", {}).get("visit")
    if visit is None:
        raise Forbidden(f"{request.scope['path']}: nobody looked at who asks")
    return cast(Visit, visit)


def caller_of(request: HTTPConnection) -> Caller:
    """Who asks. Raises `Unauthorized` on a public route, where nobody looked."""
    caller = visit_of(request).caller
    if caller is None:
        raise Unauthorized(f"{request.scope['path']}: asks nobody who they are")
    return caller


def tell(request: HTTPConnection, *, subject: str = "", who: str = "", news: bool = True) -> None:
    """What the audit log should name: never a secret, a body or a query. Without `news` it is not worth an entry."""
    visit = visit_of(request)
    if visit.rule is not None and not news:
        visit.rule = replace(visit.rule, audited=False)
    visit.subject, visit.who = subject or visit.subject, who or visit.who


async def authorize(request: Request) -> None:
    """The second lock, on every route: the gate must have admitted this request to this very route."""
    visit, route = visit_of(request), request.scope["route"].path
    if visit.rule is None or visit.template != route:
        raise Forbidden(f"{request.method} {route}: no row of the policy names this route, so nobody may call it")


async def authenticate(request: Request, rule: Rule, known: Known) -> Caller:
    """Who asks, for a route that is not public. Raises `Unauthorized` or `Forbidden`."""
    credential = _credential(request, rule) if rule.remembered else ""
    if not credential:
        return await _look_up(request, rule)
    return await known.who(credential, lambda: _look_up(request, rule), time.monotonic)


def _credential(request: Request, rule: Rule) -> str:
    """What is shown: exactly what `_look_up` goes by."""
    authorization = request.headers.get("authorization", "")
    if rule.device and not (rule.permission and authorization):
        return peer_certificate(request) or ""
    return authorization


async def _look_up(request: Request, rule: Rule) -> Caller:
    pem = peer_certificate(request)
    if rule.device and pem is not None and not (rule.permission and "authorization" in request.headers):
        services = services_of(request)
        return await services.serial.run(_device_caller, services, pem, rule)
    if rule.device and not rule.permission:
        raise Unauthorized(f"{request.scope['path']}: the certificate of a device is needed")
    return await _person(request)


def check_permission(caller: Caller, rule: Rule) -> None:
    """Raises `Forbidden` for a person or program without the permission that a rule names."""
    if rule.permission and DEVICE_ROLE not in caller.roles:
        caller.check(rule.permission)


def peer_certificate(request: HTTPConnection) -> str | None:
    """The certificate (PEM) that the connection showed; the TLS layer checked that it comes from this fleet."""
    chain = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or ()
    return next(iter(chain), None)


async def _person(request: Request) -> Caller:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer":
        raise Unauthorized(
            f"{request.method} {request.scope['path']}: a token is needed: send 'Authorization: Bearer <token>', or "
            f"run `shoal login`; {WHERE_FROM}"
        )
    services = services_of(request)
    # Not on the serial thread: whoever guesses must not hold up what the fleet does.
    caller, used = await asyncio.to_thread(services.people.caller, token.strip())
    if used is not None:
        try:
            await services.serial.run(services.people.touch, used)
        except FleetError as e:
            _log.warning("the use of a token was not noted: %s", e)
    return caller


def _device_caller(services: Services, pem: str, rule: Rule) -> Caller:
    with services.database.transaction() as session:
        if rule.adopts:
            adopt(session, services.authority, load_certificate(pem.encode()), services.clock())
        device = device_of(session, pem)
        return Caller(f"device:{device.id}", frozenset({DEVICE_ROLE}), frozenset({device.group}))
