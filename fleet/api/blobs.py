"""The route for chunks: a device fetches over HTTPS what MQTT did not bring it."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fleet import devices
from fleet.api.auth import caller_of
from fleet.errors import Forbidden
from fleet.mqtt.ranges import ByteRange, Ranges
from fleet.services import Services, services_of

LONGEST: Final = 120.0
"""Seconds that one answer may take: its place is for others too."""
router = APIRouter(prefix="/api/v1")


@router.get(
    "/blobs/{digest}/chunks",
    response_class=StreamingResponse,
    status_code=206,
    responses={206: {"description": "That range of the encrypted chunks", "content": {"application/octet-stream": {}}}},
)
async def chunks(request: Request, digest: str) -> StreamingResponse:
    """A range of the encrypted chunks of a blob, laid end to end; only for a device that it is assigned to."""
    services = services_of(request)
    device = caller_of(request).name.removeprefix("device:")
    wanted = await services.serial.run(_find, services, device, digest, request.headers.get("range", ""))
    services.ranges.enter(device)  # given back at the end of the answer
    return _Chunks(services.ranges, device, wanted)


def _find(services: Services, device: str, digest: str, header: str) -> ByteRange:
    with services.database.transaction() as session:
        if not services.inbox.may_fetch(session, devices.find(session, device), digest):
            raise Forbidden(f"chunks of {digest}: this blob is not assigned to {device}")
    return services.ranges.find(digest, header)


class _Chunks(StreamingResponse):
    """An answer that gives its place back when it is sent, or when its reader has gone."""

    def __init__(self, ranges: Ranges, device: str, wanted: ByteRange) -> None:
        headers = {
            "Content-Length": str(wanted.size),
            "Content-Range": f"bytes {wanted.first}-{wanted.last}/{wanted.total}",
        }
        self._ranges, self._device = ranges, device
        super().__init__(ranges.pieces(wanted), status_code=206, headers=headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            async with asyncio.timeout(LONGEST):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return  # the connection ends, and the device has the chunks that came
        finally:
            self._ranges.leave(self._device)
