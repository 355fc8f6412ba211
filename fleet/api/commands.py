"""Routes for commands to one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlmodel import Session

from fleet import commands, devices
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.services import Services, services_of
from fleet.store.tables import Device

router = APIRouter(prefix="/api/v1/devices/{device}/commands")

Sent = Literal["report", "self-test", "logs", "restart"]
_Read = TypeVar("_Read")


class NewCommand(BaseModel):
    """What to do once, now. A device is wiped only by retiring it."""

    action: Sent


@router.post("", status_code=201)
async def send_command(request: Request, device: str, new: NewCommand) -> dict[str, Any]:
    """Send a command. One that is not answered before `expires` is not done any more."""
    services = services_of(request)
    tell(request, subject=f"{new.action} of device {device[:63]}")
    return await services.serial.run(_send, services, caller_of(request), device, new.action)


@router.get("")
async def list_commands(request: Request, device: str) -> list[dict[str, Any]]:
    """The newest commands of a device and what came of them, the newest first."""
    return await _read(
        request, device, lambda session, row: [commands.view(one) for one in commands.newest(session, row.id)]
    )


@router.get("/{command}")
async def show_command(request: Request, device: str, command: str) -> dict[str, Any]:
    """One command, and what the device answered."""
    return await _read(request, device, lambda session, row: commands.view(commands.find(session, row.id, command)))


async def _read(request: Request, device: str, read: Callable[[Session, Device], _Read]) -> _Read:
    services, caller = services_of(request), caller_of(request)

    def work() -> _Read:
        with services.database.transaction() as session:
            row = devices.find(session, device)
            caller.check_group(row.group)
            return read(session, row)

    return await services.serial.run(work)


def _send(services: Services, caller: Caller, device: str, action: Sent) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = devices.find(session, device)
        caller.check_group(row.group)
        command = services.commands.send(session, row, action)
        shown = commands.view(commands.find(session, device, f"{command.epoch}.{command.seq}"))
    services.outbox.commands([device])
    return shown
