"""Routes that tell how the fleet is: health, status, profiles."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request

from fleet import devices, profiles
from fleet.rollout import table
from fleet.rollout.reading import all_rollouts
from fleet.services import Services, services_of
from wire.document import CONTRACT
from wire.units import show_instant

router = APIRouter()


@router.get("/healthz")
async def health() -> dict[str, str]:
    """That this process answers; public, so it says nothing else."""
    return {"status": "ok"}


@router.get("/api/v1/status")
async def status(request: Request) -> dict[str, Any]:
    """The fleet at a glance."""
    services = services_of(request)
    return await services.serial.run(_status, services)


@router.get("/api/v1/profiles")
async def list_profiles() -> list[dict[str, Any]]:
    """Every profile that this installation knows."""
    return [profile.to_value() for profile in profiles.all_profiles()]


def _status(services: Services) -> dict[str, Any]:
    broker, repository = services.broker, services.repository
    hearing = services.hearing()
    rollouts: dict[str, int] = dict.fromkeys(table.STATES, 0)
    with services.database.transaction() as session:
        for row in all_rollouts(session):
            rollouts[row.state] += 1
        counts, telemetry = devices.counts(session, hearing), devices.telemetry_counts(session, hearing)
        security = devices.security_counts(session, services.clock())
    return {
        "version": version("shoal"),
        "contract": CONTRACT,
        "started": show_instant(services.started),
        "broker": {"state": broker.state, "pid": broker.pid, "port": broker.address.port},
        "trust": {
            name: {"version": number, "expires": show_instant(expires)}
            for name, (number, expires) in repository.versions().items()
        },
        "devices": counts,
        "releases": len(repository.releases),
        "rollouts": rollouts,
        "telemetry": telemetry,
        "security": security,
        "transfer": {"published": services.transfer.published, "ranges": services.ranges.sent},
    }
