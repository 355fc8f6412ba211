"""Routes for models in shadow: have one device try a release beside its model, without an answer of it to anybody."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fleet import devices
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.services import Services, services_of
from fleet.shadows import ShadowRequest
from fleet.trust.desired import shadows_of

router = APIRouter(prefix="/api/v1/devices/{device}/shadows")


class NewShadow(BaseModel):
    """A release by its target path, and its budget.

    `share`: percent of the requests; `cpu`: percent of one core; `memory`: bytes, 0 for what there is room for;
    `max_c`: degrees Celsius above which it pauses.
    """

    target: str
    share: int = 20
    cpu: int = 10
    memory: int = 0
    max_c: float = 70.0


@router.post("", status_code=201)
async def begin_shadow(request: Request, device: str, new: NewShadow) -> list[dict[str, Any]]:
    """Have a device run a release in shadow of its model. The answer is all that it is to run in shadow."""
    services = services_of(request)
    tell(request, subject=f"shadow of {new.target[:200]} on {device[:63]}")
    asked = ShadowRequest(**new.model_dump())
    return await services.serial.run(_begin, services, caller_of(request), device, asked)


@router.delete("/{model}")
async def end_shadow(request: Request, device: str, model: str) -> list[dict[str, Any]]:
    """Have a device end what it runs in shadow of a model; the same again changes nothing."""
    services = services_of(request)
    tell(request, subject=f"shadow of model {model[:63]} on {device[:63]}")
    return await services.serial.run(_end, services, caller_of(request), device, model)


def _begin(services: Services, caller: Caller, id_: str, asked: ShadowRequest) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        device = devices.find(session, id_)
        caller.check_group(device.group)
        services.shadows.begin(session, device, asked)
        shown = [shadow.to_value() for shadow in shadows_of(session, device)]
    services.outbox.desired([id_])
    return shown


def _end(services: Services, caller: Caller, id_: str, model: str) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        device = devices.find(session, id_)
        caller.check_group(device.group)
        services.shadows.end(session, device, model)
        shown = [shadow.to_value() for shadow in shadows_of(session, device)]
    services.outbox.desired([id_])
    return shown
