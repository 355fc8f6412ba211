"""Routes for commands to one device."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fleet import devices
from fleet.access import Caller
from fleet.api.auth import caller_of
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/devices/{device}/commands")


class NewCommand(BaseModel):
    """What to do once, now. A device is wiped only by retiring it."""

    action: Literal["report"]


@router.post("", status_code=201)
async def send_command(request: Request, device: str, new: NewCommand) -> dict[str, Any]:
    """Send a command. One that is not answered before `expires` is forgotten."""
    services = services_of(request)
    return await services.serial.run(_send, services, caller_of(request), device, new.action)


def _send(services: Services, caller: Caller, device: str, action: Literal["report"]) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = devices.find(session, device)
        caller.check_group(row.group)
        command = services.commands.send(session, row, action)
    services.outbox.commands([device])
    return {"device": device, "seq": command.seq, "action": command.action, "expires": command.expires}
