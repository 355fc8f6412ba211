"""Enrolment over Secure Transport (RFC 7030): cacerts and simpleenroll, with the kit's token as HTTP Basic password."""

from __future__ import annotations

import base64
import binascii

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from fastapi import APIRouter, Request, Response

from fleet.errors import Malformed, TooLarge, Unauthorized
from fleet.services import Services, services_of

router = APIRouter(prefix="/.well-known/est")

_MEDIA_TYPE = "application/pkcs7-mime; smime-type=certs-only"
_MAX_REQUEST = 16 * 1024


@router.get("/cacerts")
async def cacerts(request: Request) -> Response:
    """Section 4.1: the certificates to trust."""
    return _certificates(services_of(request).authority.certificate)


@router.post("/simpleenroll")
async def simpleenroll(request: Request) -> Response:
    """Section 4.2: a PKCS#10 request in, a certificate out."""
    services = services_of(request)
    device, token = _basic(request.headers.get("authorization", ""))
    body = _decode(await _read(request, device), device)
    der = await services.serial.run(_enrol, services, device, token, body)
    return _certificates(x509.load_der_x509_certificate(der))


def _enrol(services: Services, device: str, token: str, request: bytes) -> bytes:
    der = services.enrolment.enrol(device, token, request)
    services.outbox.desired([device])
    return der


def _basic(header: str) -> tuple[str, str]:
    kind, _, encoded = header.partition(" ")
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user = colon = password = ""
    if kind.lower() != "basic" or not colon:
        raise Unauthorized("enrolment: HTTP Basic with the device id and the token of its kit is needed")
    return user, password


async def _read(request: Request, device: str) -> bytes:
    body = bytearray()
    async for piece in request.stream():  # anybody may send it: no more is held than is taken
        body += piece
        if len(body) > _MAX_REQUEST:
            raise TooLarge(f"certificate request of {device[:63]!r}: over {_MAX_REQUEST} bytes")
    return bytes(body)


def _decode(body: bytes, device: str) -> bytes:
    try:
        # Section 4.2.1 wants base64 with line breaks allowed; a client may send it with or without.
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as e:
        raise Malformed(f"certificate request of {device[:63]!r}: not base64: {e}") from e


def _certificates(certificate: x509.Certificate) -> Response:
    der = pkcs7.serialize_certificates([certificate], Encoding.DER)
    headers = {"Content-Transfer-Encoding": "base64"}
    # One line: strongSwan's client fails on line breaks.
    return Response(base64.b64encode(der), media_type=_MEDIA_TYPE, headers=headers)
