"""Enrolment over Secure Transport (RFC 7030): cacerts, simpleenroll, simplereenroll; and renewal by a signed statement.

Who comes to simpleenroll shows the token of its kit as HTTP Basic password, or the claim certificate of its batch;
simplereenroll takes the certificate that the device has.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from fastapi import APIRouter, Request, Response

from fleet.api.auth import peer_certificate, tell
from fleet.errors import Malformed, TooLarge, Unauthorized
from fleet.services import Services, services_of
from fleet.trust.ca import common_name, load_certificate

router = APIRouter()

RETRY_AFTER: Final = 10
"""Seconds that a device waits before it asks again whether it was accepted."""
_EST = "/.well-known/est"
_MEDIA_TYPE = "application/pkcs7-mime; smime-type=certs-only"
_MAX_REQUEST = 16 * 1024
_MAX_RENEWAL = 32 * 1024
_CERTIFICATES: dict[str, Any] = {
    "description": "A PKCS#7 structure of certificates only, DER, base64 on one line",
    "content": {"application/pkcs7-mime": {"schema": {"type": "string"}}},
}


def _takes(media_type: str) -> dict[str, Any]:
    """What OpenAPI says of a body that no model describes."""
    schema = {"type": "string", "format": "binary"}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


@router.get(f"{_EST}/cacerts", response_class=Response, responses={200: _CERTIFICATES})
async def cacerts(request: Request) -> Response:
    """Section 4.1: the certificates to trust: every authority that devices may meet."""
    services = services_of(request)
    pems = await services.serial.run(services.authority.pems)
    return _certificates([load_certificate(pem.encode()) for pem in pems])


@router.post(
    f"{_EST}/simpleenroll",
    response_class=Response,
    responses={200: _CERTIFICATES, 202: {"description": "Waits until an operator accepts it: ask again"}},
    openapi_extra=_takes("application/pkcs10"),
)
async def simpleenroll(request: Request) -> Response:
    """Section 4.2: a PKCS#10 request in, a certificate out; 202 as long as an operator has not accepted the device."""
    services, pem = services_of(request), peer_certificate(request)
    if "authorization" not in request.headers and pem is not None:
        admission = await services.serial.run(services.batches.admit, pem, await _request(request))
        tell(request, subject=f"device {admission.device}", who=f"device:{admission.device}", news=admission.news)
        return _wait() if admission.certificate is None else _certificates([admission.certificate])
    device, token = _basic(request.headers.get("authorization", ""))
    certificate = await services.serial.run(_enrol, services, device, token, await _request(request))
    tell(request, subject=f"device {device}", who=f"device:{device}")
    return _certificates([certificate])


@router.post(
    f"{_EST}/simplereenroll",
    response_class=Response,
    responses={200: _CERTIFICATES},
    openapi_extra=_takes("application/pkcs10"),
)
async def simplereenroll(request: Request) -> Response:
    """Section 4.2.2: the next certificate of the device whose certificate the connection shows."""
    services, pem = services_of(request), peer_certificate(request)
    if pem is None:
        raise Unauthorized("renewal: show the certificate of the device in the TLS handshake")
    certificate = await services.serial.run(services.renewals.by_certificate, pem, await _request(request))
    return _certificates([certificate])


@router.post(
    "/api/v1/renewals",
    response_class=Response,
    responses={200: _CERTIFICATES},
    openapi_extra=_takes("application/json"),
)
async def renew(request: Request) -> Response:
    """The same for a device whose certificate ran out: a DSSE envelope of a `Renewal`, signed by the old key."""
    services = services_of(request)
    envelope = await _read(request, _MAX_RENEWAL)
    certificate = await services.serial.run(services.renewals.by_statement, envelope)
    device = common_name(certificate.subject)
    tell(request, subject=f"device {device}", who=f"device:{device}")
    return _certificates([certificate])


def _enrol(services: Services, device: str, token: str, request: bytes) -> x509.Certificate:
    certificate = services.enrolment.enrol(device, token, request)
    services.outbox.desired([device])
    return certificate


def _basic(header: str) -> tuple[str, str]:
    kind, _, encoded = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        user = colon = password = ""
    if kind.lower() != "basic" or not colon:
        raise Unauthorized(
            "enrolment: HTTP Basic with the device id and the token of its kit is needed, or the claim certificate of "
            "a batch in the TLS handshake"
        )
    return user, password


async def _request(request: Request) -> bytes:
    body = await _read(request, _MAX_REQUEST)
    try:
        # Section 4.2.1 wants base64 with line breaks allowed; a client may send it with or without.
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as e:
        raise Malformed(f"certificate request: not base64: {e}") from e


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():  # anybody may send it: no more is held than is taken
        body += piece
        if len(body) > limit:
            raise TooLarge(f"{request.url.path}: the body is over {limit} bytes")
    return bytes(body)


def _wait() -> Response:
    """Section 4.2.3."""
    text = "This device waits until an operator accepts it: ask again later, with the same key.\n"
    return Response(text, status_code=202, media_type="text/plain", headers={"Retry-After": str(RETRY_AFTER)})


def _certificates(certificates: list[x509.Certificate]) -> Response:
    der = pkcs7.serialize_certificates(certificates, Encoding.DER)
    headers = {"Content-Transfer-Encoding": "base64"}
    # One line: strongSwan's client fails on line breaks.
    return Response(base64.b64encode(der), media_type=_MEDIA_TYPE, headers=headers)
