"""Routes for the model registry: versions, aliases, lineage, and which model to take."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field

from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.api.rollouts import RolloutTerms
from fleet.registry import aliases
from fleet.registry.aliases import AliasChange
from fleet.registry.suggest import Suggestion, Wish, suggest
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/registry")

Limit = Annotated[float, Query(ge=0, le=1e9, allow_inf_nan=False)]


class MoveAlias(BaseModel):
    """What an alias shall mean, and why. `was`: what it means as far as you know; left out: whatever it is.

    `rollout`: how the version is sent, too, as in POST /api/v1/rollouts.
    """

    version: str = Field(min_length=1, max_length=64)
    reason: str = Field(default="", max_length=500)
    was: str | None = None
    rollout: RolloutTerms | None = None


class RemoveAlias(BaseModel):
    """Why an alias goes."""

    reason: str = Field(default="", max_length=500)


@router.get("/models")
async def list_registry(request: Request) -> list[dict[str, Any]]:
    """Every model with its versions, their aliases, and how many devices run each."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.get("/models/{family}/{name}")
async def show_model(request: Request, family: str, name: str) -> dict[str, Any]:
    """One model, with how its aliases moved."""
    services = services_of(request)
    return await services.serial.run(_show, services, f"{family}/{name}")


@router.get("/models/{family}/{name}/versions/{version}/lineage")
async def show_lineage(request: Request, family: str, name: str, version: str) -> dict[str, Any]:
    """What a version was made of, and where it runs; `@production` stands for the version that it means."""
    services = services_of(request)
    return await services.serial.run(_lineage, services, caller_of(request), f"{family}/{name}", version)


@router.post("/models/{family}/{name}/aliases/{alias}")
async def move_alias(
    request: Request,
    family: str,
    name: str,
    alias: str,
    move: MoveAlias,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Have an alias mean a version from now on, and begin a rollout of it if asked: both or neither.

    Where it means that version already, the rollout that was begun with it goes on, or another is begun if that ended.
    """
    services = services_of(request)
    tell(request, subject=f"alias {alias[:64]} of {family[:64]}/{name[:64]} to {move.version}")
    caller = caller_of(request)
    return await services.serial.run(_move, services, caller, f"{family}/{name}", alias, move, idempotency_key)


@router.post("/models/{family}/{name}/aliases/{alias}/remove")
async def remove_alias(request: Request, family: str, name: str, alias: str, why: RemoveAlias) -> dict[str, Any]:
    """Have an alias mean nothing any more. What runs goes on."""
    services = services_of(request)
    tell(request, subject=f"alias {alias[:64]} of {family[:64]}/{name[:64]}")
    return await services.serial.run(_remove, services, caller_of(request), f"{family}/{name}", alias, why.reason)


@router.get("/suggest")
async def suggest_model(
    request: Request,
    profile: Annotated[str, Query(max_length=64)],
    task: Annotated[str, Query(max_length=64)] = "",
    max_ms: Limit = 0.0,
    max_mb: Limit = 0.0,
    min_accuracy: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)] = 0.0,
) -> list[dict[str, Any]]:
    """The releases of a profile, the best first, each with how it holds the limits and on what ground."""
    services = services_of(request)
    wish = Wish(profile=profile, task=task, max_ms=max_ms, max_mb=max_mb, min_accuracy=min_accuracy)
    return await services.serial.run(_suggest, services, caller_of(request), wish)


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return services.registry.models(session)


def _show(services: Services, model: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return services.registry.show(session, model)


def _lineage(services: Services, caller: Caller, model: str, version: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return services.registry.lineage(session, model, version, caller)


def _move(
    services: Services, caller: Caller, model: str, alias: str, move: MoveAlias, key: str | None
) -> dict[str, Any]:
    asked = AliasChange(alias=alias, version=move.version, reason=move.reason, was=move.was)
    family, _, name = model.partition("/")
    rollout, changed = "", list[str]()
    with services.database.transaction() as session:
        services.registry.check_version(model, move.version)
        # A request that comes again must not move back what somebody moved on meanwhile.
        is_known = move.rollout is not None and services.rollouts.knows(session, key)
        if not is_known:
            aliases.change(session, model, asked, caller, services.clock())
        if move.rollout is not None:
            caller.check("rollouts.run")
            last = None if is_known else aliases.newest_move(session, model, alias)
            rollout = last.rollout if last is not None else ""
            if not services.rollouts.is_open(session, rollout):
                wanted = move.rollout.of(family, name, move.version, key=key)
                row, changed = services.rollouts.start(session, wanted, caller)
                rollout = row.id
                if last is not None:
                    last.rollout = rollout
                    session.add(last)
        shown = services.registry.show(session, model)
    services.outbox.desired(changed)
    return {**shown, "rollout": rollout}


def _remove(services: Services, caller: Caller, model: str, alias: str, reason: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        aliases.change(session, model, AliasChange(alias=alias, reason=reason), caller, services.clock())
        return services.registry.show(session, model)


def _suggest(services: Services, caller: Caller, wish: Wish) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        found = services.registry.candidates(session, wish.profile, caller)
    return [_shown(one) for one in suggest(found, wish)]


def _shown(one: Suggestion) -> dict[str, Any]:
    candidate = one.candidate
    latency, quality = candidate.latency, candidate.quality
    return {
        "target": candidate.target,
        "digest": candidate.digest,
        "task": candidate.task,
        "aliases": list(candidate.aliases),
        "bytes": candidate.size,
        "devices": candidate.devices,
        "fit": one.fit,
        "reasons": list(one.reasons),
        "latency": asdict(latency) if latency else None,
        "quality": asdict(quality) if quality else None,
    }
