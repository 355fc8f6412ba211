"""Routes for drift: what moved, and how each model stands."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from fleet.api.auth import caller_of
from fleet.drift import views
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/drift")


@router.get("")
async def show_drift(request: Request) -> dict[str, Any]:
    """The alarms that are open, and the newest scores of each model; of groups, those of the caller's."""
    services, caller = services_of(request), caller_of(request)
    return await services.serial.run(_show, services, caller.groups)


@router.get("/models/{digest}")
async def show_model(request: Request, digest: str) -> dict[str, Any]:
    """One model by the digest of its manifest: every score of its newest window, how it was before, its alarms."""
    services, caller = services_of(request), caller_of(request)
    return await services.serial.run(_model, services, digest, caller.groups)


def _show(services: Services, groups: frozenset[str]) -> dict[str, Any]:
    with services.database.transaction() as session:
        return views.overview(session, groups)


def _model(services: Services, digest: str, groups: frozenset[str]) -> dict[str, Any]:
    with services.database.transaction() as session:
        return views.model(session, digest, groups)
