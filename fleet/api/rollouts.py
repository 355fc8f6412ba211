"""Routes for rollouts: start, watch, abort."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from fleet import rollout_service
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.rollout_service import RolloutRequest
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/rollouts")


class NewRollout(BaseModel):
    """A version to send, in waves of rising percentages that end at 100; to one group, or to all without one."""

    family: str
    name: str
    version: str
    waves: list[int] = [25, 100]
    group: str | None = None


class Abort(BaseModel):
    """Why a rollout is ended."""

    reason: str


@router.post("", status_code=201)
async def start_rollout(
    request: Request, new: NewRollout, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Start a rollout to every enrolled device, of the group if one is named, whose profile has a release."""
    services = services_of(request)
    asked = RolloutRequest(**new.model_dump(), key=idempotency_key)
    tell(request, subject=f"rollout of {new.family}/{new.name} {new.version}")
    return await services.serial.run(_start, services, caller_of(request), asked)


@router.get("")
async def list_rollouts(request: Request) -> list[dict[str, Any]]:
    """Every rollout, the newest first."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.get("/{rollout}")
async def show_rollout(request: Request, rollout: str) -> dict[str, Any]:
    """One rollout."""
    services = services_of(request)
    return await services.serial.run(_show, services, rollout)


@router.post("/{rollout}/abort")
async def abort_rollout(request: Request, rollout: str, abort: Abort) -> dict[str, Any]:
    """End a rollout and bring every touched device back to what it ran before.

    Asked again for the same reason, as after a lost answer, it gives the same answer.
    """
    services = services_of(request)
    return await services.serial.run(_abort, services, caller_of(request), rollout, abort.reason)


def _start(services: Services, caller: Caller, asked: RolloutRequest) -> dict[str, Any]:
    with services.database.transaction() as session:
        row, changed = services.rollouts.start(session, asked, caller)
        shown = rollout_service.view(session, row)
    services.outbox.desired(changed)
    return shown


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [rollout_service.view(session, row) for row in rollout_service.all_rollouts(session)]


def _show(services: Services, rollout: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return rollout_service.view(session, rollout_service.find(session, rollout))


def _abort(services: Services, caller: Caller, rollout: str, reason: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        row, changed = services.rollouts.abort(session, rollout, reason, caller)
        shown = rollout_service.view(session, row)
    services.outbox.desired(changed)
    return shown
