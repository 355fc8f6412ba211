"""Routes about the gateway: what was asked and what it cost, its routes, its keys, its metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.errors import Conflict
from fleet.gateway.gateway import Gateway
from fleet.gateway.limits import Limits, limits_from
from fleet.people import DAYS, NewToken
from fleet.services import Services, services_of

ROLE = "gateway"
router = APIRouter(prefix="/api/v1/gateway")


class KeyLimits(BaseModel):
    """What is not given is as `limits.each` in gateway.toml says. Money in units of the currency of the prices."""

    models: list[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    money_per_day: float | None = None
    money_per_month: float | None = None
    filters: list[str] | None = None

    def read(self, gateway: Gateway) -> Limits:
        """As the gateway goes by them. Raises `Malformed`, and `Conflict` where a filter, route or price is missing."""
        value = {name: found for name, found in self.model_dump().items() if found is not None}
        limits = limits_from(value, "limits")
        config = gateway.config
        for name in limits.filters or ():
            if name not in config.filters:
                raise Conflict(f"limits: filters: {name!r}: gateway.toml has none of that name")
        if limits.counts_money and config.unpriced():
            raise Conflict(f"limits: money: {config.unpriced()} has no price: set it in gateway.toml first")
        return limits


class NewKey(BaseModel):
    """A key of the gateway: a token of nobody with the role `gateway` alone."""

    name: str
    groups: list[str] = []
    days: int = DAYS
    limits: KeyLimits = KeyLimits()


@router.get("/routes")
async def routes(request: Request) -> list[dict[str, Any]]:
    """Every route, its targets, and how their upstreams are."""
    return services_of(request).gateway.routes_view()


@router.get("/usage")
async def usage(request: Request, by: str = "who", since: str = "") -> list[dict[str, Any]]:
    """Requests, tokens and cost by who, tenant, groups, route, model, upstream, outcome or day."""
    services = services_of(request)
    gateway = services.gateway
    await gateway.write()
    return await services.serial.run(gateway.store.usage, by, since, gateway.config.currency)


@router.get("/requests")
async def requests(request: Request, limit: int = 50, who: str = "", since: str = "") -> list[dict[str, Any]]:
    """The newest requests."""
    services = services_of(request)
    await services.gateway.write()
    return await services.serial.run(services.gateway.store.newest, limit, who, since)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> PlainTextResponse:
    """For Prometheus; since the start of the fleet."""
    return PlainTextResponse(services_of(request).gateway.metrics_text(), media_type="text/plain; version=0.0.4")


@router.get("/keys")
async def keys(request: Request) -> list[dict[str, Any]]:
    """Every token that may ask the gateway, with its own limits."""
    services = services_of(request)
    return await services.serial.run(services.gateway.store.keys)


@router.post("/keys", status_code=201)
async def add_key(request: Request, new: NewKey) -> dict[str, Any]:
    """A key, shown this once."""
    services, caller = services_of(request), caller_of(request)
    limits = new.limits.read(services.gateway)
    made = await services.serial.run(_add, services, caller, new, limits)
    services.gateway.limits_changed(made["id"], limits)
    tell(request, subject=f"key {made['id']} {made['name']}")
    return made


@router.post("/keys/{key}/limits")
async def set_limits(request: Request, key: str, new: KeyLimits) -> dict[str, Any]:
    """Other limits for a key, in the place of those it has; from now on."""
    services, caller = services_of(request), caller_of(request)
    limits = new.read(services.gateway)
    changed = await services.serial.run(services.gateway.store.set_limits, caller, key, limits)
    services.gateway.limits_changed(key, limits)
    return changed


def _add(services: Services, caller: Caller, new: NewKey, limits: Limits) -> dict[str, Any]:
    wanted = NewToken(name=new.name, roles=(ROLE,), groups=tuple(new.groups), days=new.days, program=True)
    made = services.people.add_token(caller, wanted)
    return {**services.gateway.store.set_limits(caller, made["id"], limits), "token": made["token"]}
