"""Routes for rollouts: start, watch, abort."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel

from fleet import rollout_service
from fleet.api.auth import operator
from fleet.rollout_service import RolloutRequest
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/rollouts", dependencies=[Depends(operator)])


class NewRollout(BaseModel):
    """A version to send, in waves of rising percentages that end at 100."""

    family: str
    name: str
    version: str
    waves: list[int] = [25, 100]


class Abort(BaseModel):
    """Why a rollout is ended."""

    reason: str


@router.post("", status_code=201)
async def start_rollout(
    request: Request, new: NewRollout, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Start a rollout to every enrolled device whose profile has a release of the version."""
    services = services_of(request)
    asked = RolloutRequest(**new.model_dump(), key=idempotency_key)
    return await services.serial.run(_start, services, asked)


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
    """End a rollout and bring every touched device back to what it ran before."""
    services = services_of(request)
    return await services.serial.run(_abort, services, rollout, abort.reason)


def _start(services: Services, asked: RolloutRequest) -> dict[str, Any]:
    with services.database.transaction() as session:
        row, changed = services.rollouts.start(session, asked)
        shown = rollout_service.view(session, row)
    services.outbox.desired(changed)
    return shown


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [rollout_service.view(session, row) for row in rollout_service.all_rollouts(session)]


def _show(services: Services, rollout: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return rollout_service.view(session, rollout_service.find(session, rollout))


def _abort(services: Services, rollout: str, reason: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        row, changed = services.rollouts.abort(session, rollout, reason)
        shown = rollout_service.view(session, row)
    services.outbox.desired(changed)
    return shown
