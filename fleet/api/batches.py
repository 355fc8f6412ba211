"""Routes for batches: one kit for many devices, each of which waits until an operator accepts it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field

from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.services import Services, services_of
from fleet.trust import batches
from fleet.trust.batches import MAX_LIFETIME, MAX_QUOTA, BatchRequest
from wire.kit import EnrolmentKit
from wire.units import show_instant

router = APIRouter(prefix="/api/v1/batches")

_MONTH = 30 * 86_400


class NewBatch(BaseModel):
    """A batch: what its devices are, how many may ask for admission, and for how long."""

    batch: str
    profile: str
    group: str = "default"
    quota: Annotated[int, Field(ge=1, le=MAX_QUOTA)]
    lifetime_s: Annotated[int, Field(ge=1, le=int(MAX_LIFETIME.total_seconds()))] = _MONTH


@router.post("", status_code=201)
async def add_batch(
    request: Request, new: NewBatch, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """The enrolment kit of a new batch. The claim's key is in this answer and nowhere else."""
    services = services_of(request)
    asked = BatchRequest(
        **new.model_dump(exclude={"lifetime_s"}), lifetime=timedelta(seconds=new.lifetime_s), key=idempotency_key
    )
    tell(request, subject=f"kit of batch {new.batch[:63]}")
    return (await services.serial.run(_kit, services, caller_of(request), asked)).to_value()


@router.get("")
async def list_batches(request: Request) -> list[dict[str, Any]]:
    """Every batch that the caller may act on, by name."""
    services = services_of(request)
    return await services.serial.run(_list, services, caller_of(request))


@router.post("/{batch}/revoke")
async def revoke_batch(request: Request, batch: str) -> dict[str, Any]:
    """Take nobody in with this claim any more. Devices that are in stay in."""
    services = services_of(request)
    return await services.serial.run(_revoke, services, caller_of(request), batch)


def _kit(services: Services, caller: Caller, asked: BatchRequest) -> EnrolmentKit:
    trust = services.repository.documents()
    caller.check_group(asked.group)
    with services.database.transaction() as session:
        kit = services.batches.kit(session, asked, trust)
    services.revocations.apply()  # the broker learns that this name is no device
    return kit


def _list(services: Services, caller: Caller) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        rows = batches.all_batches(session)
        return [batches.view(session, row) for row in rows if not caller.groups or row.group in caller.groups]


def _revoke(services: Services, caller: Caller, batch: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        row = batches.find(session, batch)
        caller.check_group(row.group)
        batches.revoke(session, row, show_instant(services.clock()))
        return batches.view(session, row)
