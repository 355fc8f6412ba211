"""The route that Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from fleet.api.auth import caller_of
from fleet.exposition import MEDIA_TYPE
from fleet.health import figures, metrics
from fleet.services import services_of

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def read_metrics(request: Request) -> PlainTextResponse:
    """Figures of the fleet, for Prometheus; those of its gateway for whoever has `gateway.read`, as everywhere."""
    services = services_of(request)
    found = metrics.text(await services.serial.run(figures.read, services))
    if "gateway.read" in caller_of(request).permissions:
        found += services.gateway.metrics_text()
    return PlainTextResponse(found, media_type=MEDIA_TYPE)
