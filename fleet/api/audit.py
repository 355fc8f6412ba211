"""Routes for the audit log: read by pages from its beginning, as a verification needs it, or from its end."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from fleet.audit import PAGE
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/audit")


@router.get("")
async def read_log(request: Request, after: int = 0, limit: int = PAGE) -> dict[str, Any]:
    """Entries behind number `after`, the oldest first, and the head of that moment."""
    services = services_of(request)
    return await services.serial.run(_page, services, after, limit)


@router.get("/newest")
async def newest(request: Request, limit: int = 100, who: str = "", since: str = "") -> list[dict[str, Any]]:
    """Entries, the newest first: of one caller, since an RFC 3339 time."""
    services = services_of(request)
    return await services.serial.run(_newest, services, limit, who, since)


def _page(services: Services, after: int, limit: int) -> dict[str, Any]:
    with services.database.transaction() as session:
        entries = services.audit.page(session, after=after, limit=limit)
        return {"entries": entries, "head": services.audit.head(session)}


def _newest(services: Services, limit: int, who: str, since: str) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return services.audit.newest(session, limit=limit, who=who, since=since)
