"""Routes for alerts: what is wrong now, who knows of it, and what shall not be told for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlmodel import Session

from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.health.alerts import NewSilence
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/alerts")


class Silence(BaseModel):
    """Nothing is told of a rule and a subject for `lasts_s` seconds; "" is any of them."""

    rule: Annotated[str, Field(max_length=200)] = ""
    subject: Annotated[str, Field(max_length=200)] = ""
    lasts_s: Annotated[int, Field(ge=1, le=365 * 86_400)]
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class Test(BaseModel):
    """A channel of the file of rules."""

    channel: Annotated[str, Field(max_length=200)]


@router.get("")
async def list_alerts(request: Request) -> dict[str, Any]:
    """Open alerts, silences, rules and channels. Who is given groups sees none of devices of other groups."""
    services, caller = services_of(request), caller_of(request)
    return await services.serial.run(_view, services, caller)


@router.post("/{alert}/acknowledge")
async def acknowledge(request: Request, alert: str) -> dict[str, Any]:
    """Somebody knows of an alert: it is not told again, only when it is over."""
    services, caller = services_of(request), caller_of(request)
    return await services.serial.run(_acknowledge, services, caller, alert)


@router.post("/silences", status_code=201)
async def add_silence(request: Request, new: Silence) -> dict[str, Any]:
    """Tell nothing of a rule and a subject for a while."""
    services, caller = services_of(request), caller_of(request)
    lasts = timedelta(seconds=new.lasts_s)
    asked = NewSilence(rule=new.rule, subject=new.subject, lasts=lasts, reason=new.reason)
    tell(request, subject=f"silence of {new.rule or 'every rule'}, {new.subject or 'every subject'}")
    return await services.serial.run(_silence, services, caller, asked)


@router.delete("/silences/{silence}", status_code=204)
async def end_silence(request: Request, silence: str) -> None:
    """Tell again."""
    services, caller = services_of(request), caller_of(request)
    await services.serial.run(_end_silence, services, caller, silence)


@router.post("/test", status_code=201)
async def test(request: Request, asked: Test) -> dict[str, Any]:
    """Send a message to a channel, to see whether it arrives."""
    services = services_of(request)
    return {"message": await services.serial.run(_test, services, asked.channel)}


def _view(services: Services, caller: Caller) -> dict[str, Any]:
    with services.database.transaction() as session:
        return services.alerts.view(session, caller)


def _acknowledge(services: Services, caller: Caller, alert: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return services.alerts.acknowledge(session, alert, caller)


def _silence(services: Services, caller: Caller, asked: NewSilence) -> dict[str, Any]:
    with services.database.transaction() as session:
        return services.alerts.silence(session, asked, caller)


def _end_silence(services: Services, caller: Caller, silence: str) -> None:
    with services.database.transaction() as session:
        services.alerts.end_silence(session, silence, caller)


def _test(services: Services, channel: str) -> str:
    session: Session
    with services.database.transaction() as session:
        return services.alerts.test(session, channel, services.courier)
