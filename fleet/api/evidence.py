"""Routes for evidence: how the models of a device do, and how a version of a model does on each profile."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from fleet import devices
from fleet.access import Caller
from fleet.api.auth import caller_of
from fleet.evidence.pages import Span, device_page, model_page
from fleet.services import Services, services_of
from wire.units import instant, seconds

router = APIRouter(prefix="/api/v1/evidence")
A_DAY: Final = timedelta(days=1)

Time = Annotated[str | None, Query(max_length=40, description="RFC 3339 in UTC")]
Step = Annotated[str | None, Query(max_length=20, description="a duration such as 1 h")]


@router.get("/devices/{device}")
async def show_device_evidence(
    request: Request, device: str, since: Time = None, until: Time = None, step: Step = None
) -> dict[str, Any]:
    """What a device's models did, by digest and step, and how the device was: the last day if nothing else is asked."""
    services = services_of(request)
    span = _span(services, since, until, step)
    return await services.serial.run(_device, services, caller_of(request), device, span)


@router.get("/models/{family}/{name}/{version}")
async def show_model_evidence(
    request: Request,
    family: str,
    name: str,
    version: str,
    since: Time = None,
    until: Time = None,
    step: Step = None,
) -> dict[str, Any]:
    """What a version of a model did on all devices, by profile."""
    services = services_of(request)
    span = _span(services, since, until, step)
    return await services.serial.run(_model, services, (family, name, version), span)


def _span(services: Services, since: str | None, until: str | None, step: str | None) -> Span:
    end = instant(until, where="until") if until else services.clock()
    start = instant(since, where="since") if since else end - A_DAY
    return Span.of(start, end, seconds(step, where="step") if step else None)


def _device(services: Services, caller: Caller, device: str, span: Span) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = devices.find(session, device)
        caller.check_group(row.group)
        return device_page(session, device, span)


def _model(services: Services, named: tuple[str, str, str], span: Span) -> dict[str, Any]:
    family, name, version = named
    listed = services.repository.of_version(family, name, version)
    digests = {profile: one.release.digest for profile, one in listed.items()}
    with services.database.transaction() as session:
        found = model_page(session, digests, span)
    return {"family": family, "model": name, "version": version, **found}
