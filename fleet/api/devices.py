"""Routes for devices: kits, and what the fleet knows of each."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel
from sqlmodel import col, select

from fleet import devices
from fleet.api.auth import operator
from fleet.services import Services, services_of
from fleet.store.tables import Device
from wire.messages import EnrolmentKit

router = APIRouter(prefix="/api/v1/devices", dependencies=[Depends(operator)])


class NewDevice(BaseModel):
    """The id that a device will have, and its profile."""

    device: str
    profile: str


@router.post("", status_code=201)
async def add_device(
    request: Request, new: NewDevice, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """An enrolment kit for a new device."""
    services = services_of(request)
    return (await services.serial.run(_kit, services, new, idempotency_key)).to_value()


@router.get("")
async def list_devices(request: Request) -> list[dict[str, Any]]:
    """Every device, by id."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.get("/{device}")
async def show_device(request: Request, device: str) -> dict[str, Any]:
    """One device."""
    services = services_of(request)
    return await services.serial.run(_show, services, device)


def _kit(services: Services, new: NewDevice, key: str | None) -> EnrolmentKit:
    return services.enrolment.kit(new.device, new.profile, services.repository.documents(), key)


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [devices.view(session, row) for row in session.exec(select(Device).order_by(col(Device.id))).all()]


def _show(services: Services, device: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return devices.view(session, devices.find(session, device))
