"""Routes for the list of devices as a file: groups, tags and notes of thousands at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from fleet import inventory, inventory_csv
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.inventory import Imported
from fleet.queries import LONGEST
from fleet.services import Services, services_of

router = APIRouter(prefix="/api/v1/inventory")


class NewInventory(BaseModel):
    """A file as `GET /api/v1/inventory` gives it. `dry_run`: check every line and say what would come of it."""

    csv: str
    dry_run: bool = False


@router.get("", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
async def export(request: Request, where: Annotated[str | None, Query(max_length=LONGEST)] = None) -> PlainTextResponse:
    """Id, profile, group, tags and note of every device that the caller may act on and that is not out, as CSV."""
    services = services_of(request)
    text = await services.serial.run(_export, services, caller_of(request), where)
    return PlainTextResponse(text, media_type="text/csv")


@router.post("")
async def take(request: Request, new: NewInventory) -> dict[str, Any]:
    """Make kits for the devices of a file that are new and change those that are there: all of them, or none."""
    services, caller = services_of(request), caller_of(request)
    done = await services.serial.run(_take, services, caller, new)
    tell(
        request,
        subject=f"inventory of {len(done.kits)} new and {len(done.changed)} changed devices",
        news=not new.dry_run,
    )
    return {
        "dry_run": new.dry_run,
        "created": [kit.device for kit in done.kits],
        "changed": list(done.changed),
        "same": done.same,
        "kits": [] if new.dry_run else [kit.to_value() for kit in done.kits],
    }


def _export(services: Services, caller: Caller, where: str | None) -> str:
    with services.database.transaction() as session:
        return inventory_csv.render(inventory.lines(session, caller, where, services.hearing()))


def _take(services: Services, caller: Caller, new: NewInventory) -> Imported:
    found = inventory_csv.parse(new.csv)
    trust = services.repository.documents() if found else {}
    with services.database.transaction() as session:
        tried = session.begin_nested()
        done = inventory.take_lines(session, services.enrolment, caller, found, trust, services.clock())
        if new.dry_run:
            tried.rollback()
            return done
    services.revocations.apply()  # an id that was denied until now may come in again
    return done
