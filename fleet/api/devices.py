"""Routes for devices: kits, who may come in and who has to go, and what the fleet knows of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field
from sqlmodel import Session

from fleet import devices, inventory, lifecycle
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.device_views import view, views
from fleet.health import history
from fleet.inventory import LARGEST, PAGE, Asked
from fleet.inventory_csv import MOST_TAGS
from fleet.queries import LONGEST
from fleet.services import Services, services_of
from fleet.store.tables import Device
from fleet.trust.enrolment import KitRequest
from wire.kit import EnrolmentKit

router = APIRouter(prefix="/api/v1/devices")

Reason = Annotated[str, Field(min_length=1, max_length=500)]


class NewDevice(BaseModel):
    """The id that a device will have, its profile and its group."""

    device: str
    profile: str
    group: str = "default"


class Accept(BaseModel):
    """What a device shall be instead of what its batch says."""

    group: str | None = None
    profile: str | None = None


class Labels(BaseModel):
    """What people say of a device; what is not given stays as it is."""

    group: str | None = None
    add: Annotated[list[str], Field(max_length=MOST_TAGS)] = []
    remove: Annotated[list[str], Field(max_length=MOST_TAGS)] = []
    note: str | None = None


class Because(BaseModel):
    """Why a device has to go: kept with what is known of it."""

    reason: Reason


class Retire(BaseModel):
    """`now`: do not wait until the device has wiped itself."""

    now: bool = False


@router.post("", status_code=201)
async def add_device(
    request: Request, new: NewDevice, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """An enrolment kit for a new device, or for one that is out and may come in again."""
    services, caller = services_of(request), caller_of(request)
    asked = KitRequest(**new.model_dump(), key=idempotency_key)
    tell(request, subject=f"kit of device {new.device[:63]}")
    return (await services.serial.run(_kit, services, caller, asked)).to_value()


@router.get("")
async def list_devices(
    request: Request,
    status: Annotated[str | None, Query(max_length=32)] = None,
    group: Annotated[str | None, Query(max_length=64)] = None,
    where: Annotated[str | None, Query(max_length=LONGEST)] = None,
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=LARGEST)] = PAGE,
) -> list[dict[str, Any]]:
    """A page of the devices that the caller may act on, by id; of one status or group, or of a query.

    The next page is asked for with the last id as `after`; one with fewer than `limit` devices is the last.
    """
    services = services_of(request)
    asked = Asked(status=status, group=group, where=where, after=after, limit=limit)
    return await services.serial.run(_list, services, caller_of(request), asked)


@router.get("/{device}")
async def show_device(request: Request, device: str) -> dict[str, Any]:
    """One device."""
    services = services_of(request)
    return await services.serial.run(_change, services, caller_of(request), device, lambda _session, _row: False)


@router.get("/{device}/history")
async def show_history(
    request: Request, device: str, limit: Annotated[int, Query(ge=1, le=1000)] = 200
) -> dict[str, Any]:
    """What ran on a device when, why it changed, and what else happened to it: the newest first."""
    services = services_of(request)
    return await services.serial.run(_history, services, caller_of(request), device, limit)


@router.post("/{device}/labels")
async def label_device(request: Request, device: str, labels: Labels) -> dict[str, Any]:
    """Put a device into a group, give it tags or take some, or write a note on it. The same again changes nothing."""
    services, caller = services_of(request), caller_of(request)
    asked = inventory.Change(group=labels.group, add=labels.add, remove=labels.remove, note=labels.note)

    def label(session: Session, row: Device) -> bool:
        inventory.change(session, row, asked, caller, services.clock())
        return False

    return await services.serial.run(_change, services, caller, device, label)


@router.post("/{device}/accept")
async def accept_device(request: Request, device: str, asked: Accept) -> dict[str, Any]:
    """Let a device of a batch in. Accepting it again changes nothing."""
    services, caller = services_of(request), caller_of(request)

    def accept(session: Session, row: Device) -> bool:
        caller.check_group(asked.group or row.group)
        return lifecycle.accept(session, services.enrolment, row, asked.group, asked.profile)

    return await services.serial.run(_change, services, caller, device, accept)


@router.post("/{device}/reject")
async def reject_device(request: Request, device: str, because: Because) -> dict[str, Any]:
    """Turn a device of a batch away. Rejecting it again changes nothing."""
    services = services_of(request)
    return await services.serial.run(
        _change,
        services,
        caller_of(request),
        device,
        lambda session, row: lifecycle.reject(session, row, because.reason, services.clock()),
    )


@router.post("/{device}/revoke")
async def revoke_device(request: Request, device: str, because: Because) -> dict[str, Any]:
    """Put a device out, at once and whatever it is. Revoking it again changes nothing."""
    services = services_of(request)
    return await services.serial.run(
        _change,
        services,
        caller_of(request),
        device,
        lambda session, row: lifecycle.revoke(session, row, because.reason, services.clock()),
    )


@router.post("/{device}/retire")
async def retire_device(request: Request, device: str, how: Retire) -> dict[str, Any]:
    """Have a device wipe itself and leave. Asked again it is told again if the first order expired or could not be."""
    services = services_of(request)

    def retire(session: Session, row: Device) -> bool:
        if lifecycle.retire(session, row, services.clock(), at_once=how.now):
            services.commands.send(session, row, "wipe")
        return True

    return await services.serial.run(_change, services, caller_of(request), device, retire)


def _kit(services: Services, caller: Caller, asked: KitRequest) -> EnrolmentKit:
    trust = services.repository.documents()
    caller.check_group(asked.group)
    with services.database.transaction() as session:
        row = session.get(Device, asked.device)
        if row is not None:
            caller.check_group(row.group)
        kit = services.enrolment.kit(session, asked, trust)
    services.revocations.apply()  # an id that was denied until now may come in again
    return kit


def _list(services: Services, caller: Caller, asked: Asked) -> list[dict[str, Any]]:
    hearing = services.hearing()
    with services.database.transaction() as session:
        return views(session, inventory.find(session, asked, caller, hearing), hearing)


def _history(services: Services, caller: Caller, device: str, limit: int) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = devices.find(session, device)
        caller.check_group(row.group)
        return history.of_device(session, row, limit)


def _change(
    services: Services, caller: Caller, device: str, change: Callable[[Session, Device], bool]
) -> dict[str, Any]:
    """Do something to a device that the caller may act on; True from `change` means that others have to be told."""
    with services.database.transaction() as session:
        row = devices.find(session, device)
        caller.check_group(row.group)
        changed = change(session, row)
        session.flush()
        shown = view(session, row, services.hearing())
    if changed:
        services.revocations.apply()
        services.outbox.desired([device])
        services.outbox.commands([device])
    return shown
