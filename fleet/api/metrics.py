"""The route that Prometheus reads."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from fleet.exposition import MEDIA_TYPE
from fleet.health import figures, metrics
from fleet.services import services_of

router = APIRouter()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def read_metrics(request: Request) -> PlainTextResponse:
    """Figures of the fleet and of its gateway, for Prometheus."""
    services = services_of(request)
    found = await services.serial.run(figures.read, services)
    return PlainTextResponse(metrics.text(found) + services.gateway.metrics_text(), media_type=MEDIA_TYPE)
