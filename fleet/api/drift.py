"""Routes for drift: what moved, and how each model stands."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from fleet.drift import views
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/drift")


@router.get("")
async def show_drift(request: Request) -> dict[str, Any]:
    """The alarms that are open, and the newest scores of each model."""
    services = services_of(request)
    return await services.serial.run(_show, services)


@router.get("/models/{digest}")
async def show_model(request: Request, digest: str) -> dict[str, Any]:
    """One model by the digest of its manifest: every score of its newest window, how it was before, its alarms."""
    services = services_of(request)
    return await services.serial.run(_model, services, digest)


def _show(services: Services) -> dict[str, Any]:
    with services.database.transaction() as session:
        return views.overview(session)


def _model(services: Services, digest: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return views.model(session, digest)
