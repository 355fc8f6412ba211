"""Routes for measuring jobs: have a device time a release, and see what it says."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fleet import devices, measuring
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.measuring import MeasureRequest
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/measuring")


class NewJob(BaseModel):
    """A release by its target path, and the device that should time its golden inputs so many times."""

    target: str
    device: str
    rounds: int = 100


@router.post("", status_code=201)
async def start_measuring(request: Request, new: NewJob) -> dict[str, Any]:
    """Have a device fetch a release, time it and give it back. It never answers a request."""
    services = services_of(request)
    tell(request, subject=f"measuring of {new.target[:200]} on {new.device[:63]}")
    return await services.serial.run(_start, services, caller_of(request), MeasureRequest(**new.model_dump()))


@router.get("")
async def list_measuring(request: Request) -> list[dict[str, Any]]:
    """Every job on a device that the caller may act on, the newest first."""
    services = services_of(request)
    return await services.serial.run(_list, services, caller_of(request))


@router.get("/{job}")
async def show_measuring(request: Request, job: str) -> dict[str, Any]:
    """One job, with what the device measured."""
    services = services_of(request)
    return await services.serial.run(_show, services, caller_of(request), job)


@router.post("/{job}/cancel")
async def cancel_measuring(request: Request, job: str) -> dict[str, Any]:
    """Take a job back that has not ended."""
    services = services_of(request)
    return await services.serial.run(_cancel, services, caller_of(request), job)


def _start(services: Services, caller: Caller, asked: MeasureRequest) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = services.measuring.start(session, asked, caller)
        shown = measuring.view(row)
    services.outbox.desired([asked.device])
    return shown


def _list(services: Services, caller: Caller) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [measuring.view(row) for row in measuring.all_jobs(session, caller)]


def _show(services: Services, caller: Caller, job: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = measuring.find(session, job)
        caller.check_group(devices.find(session, row.device).group)
        return measuring.view(row)


def _cancel(services: Services, caller: Caller, job: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = services.measuring.cancel(session, job, caller)
        shown, device = measuring.view(row), row.device
    services.outbox.desired([device])
    return shown
