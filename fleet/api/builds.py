"""Routes for builds: ask for one, see how far it is, read its log, cancel it, fetch what it wrote."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from fleet.api.auth import caller_of, tell
from fleet.builds import log, queue
from fleet.builds.queue import ENDED, BuildRequest
from fleet.errors import NotFound
from fleet.services import Services, services_of
from fleet.store.tables import BuildRow
from wire.profile import Minimise

router = APIRouter(prefix="/api/v1/builds")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class BuildBody(BaseModel):
    """What to make of a registered source. `test` and `calibration` are data sets by name or digest; limits are 0 for
    none, drop in points of 100, size in 10^6 bytes; `describe` is TOML that says what the source does not.
    """

    family: str
    name: str
    version: str
    source: str
    test: str
    calibration: str | None = None
    describe: Annotated[str, Field(max_length=65536)] | None = None
    profiles: Annotated[list[str], Field(min_length=1, max_length=64)]
    max_drop: Finite = 1.0
    max_ms: Finite = 0.0
    max_mb: Finite = 0.0
    minimise: Minimise | None = None
    confidence: Finite = 0.95
    recipes: Annotated[list[str], Field(max_length=64)] = []


@router.post("", status_code=201)
async def submit_build(
    request: Request, body: BuildBody, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """Put a build into the queue. It runs when those before it have ended."""
    services = services_of(request)
    tell(request, subject=f"build of {body.family[:64]}/{body.name[:64]} {body.version[:64]}")
    values = body.model_dump()
    asked = BuildRequest(**{**values, "profiles": tuple(body.profiles), "recipes": tuple(body.recipes)})
    build = await services.serial.run(_submit, services, asked, caller_of(request).name, idempotency_key)
    services.compilers.wake()
    return build


@router.get("")
async def list_builds(request: Request) -> list[dict[str, Any]]:
    """The newest 200 builds, the newest first."""
    services = services_of(request)
    return await services.serial.run(_list, services)


@router.get("/{build}")
async def show_build(request: Request, build: str) -> dict[str, Any]:
    """A build: its state and why, the newest progress, its bundles."""
    services = services_of(request)
    return await services.serial.run(_show, services, build)


@router.get("/{build}/logs")
async def read_log(
    request: Request,
    build: str,
    offset: Annotated[int, Query(ge=0, lt=2**40)] = 0,
    limit: Annotated[int, Query(ge=4096, le=1024 * 1024)] = 65536,
) -> dict[str, Any]:
    """Whole lines of a log from `offset` on, where the next ones begin, and whether there will be more."""
    services = services_of(request)
    row = await services.serial.run(_find, services, build)
    ended = row.state in ENDED
    path = services.compilers.log_path(row.id)
    text, following = await asyncio.to_thread(log.read, path, offset=offset, limit=limit, ended=ended)
    return {"text": text, "offset": following, "ended": ended and following >= _size(services, row.id)}


@router.post("/{build}/cancel")
async def cancel_build(request: Request, build: str) -> dict[str, Any]:
    """Take a build out of the queue, or end the one that runs: it is `cancelled` once its compiler has gone."""
    services = services_of(request)
    tell(request, subject=f"build {build[:64]}")
    cancelled = await services.serial.run(_cancel, services, build)
    services.compilers.cancel(build)
    return cancelled


@router.get("/{build}/artifacts")
async def list_artifacts(request: Request, build: str) -> list[dict[str, Any]]:
    """The files of the OCI image layout that a build wrote: path, digest and size."""
    services = services_of(request)
    row = await services.serial.run(_find, services, build)
    return list(json.loads(row.artifacts))


@router.get("/{build}/artifacts/{digest}", response_class=FileResponse)
async def fetch_artifact(request: Request, build: str, digest: str) -> FileResponse:
    """One of these files."""
    services = services_of(request)
    row = await services.serial.run(_find, services, build)
    for found in json.loads(row.artifacts):
        path = services.compilers.artifact_path(row.id, found["path"])
        if found["digest"] == digest and path.is_file():
            return FileResponse(path, media_type="application/octet-stream")
    raise NotFound(f"build {row.id}: there is no file {digest[:80]!r} of it here: a backup holds none, so build again")


def _submit(services: Services, asked: BuildRequest, who: str, key: str | None) -> dict[str, Any]:
    with services.database.transaction() as session:
        return queue.view(session, services.builds.submit(session, asked, who, key))


def _list(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [queue.view(session, row) for row in queue.newest(session)]


def _show(services: Services, build: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return queue.view(session, queue.find(session, build))


def _find(services: Services, build: str) -> BuildRow:
    with services.database.transaction() as session:
        return queue.find(session, build)


def _cancel(services: Services, build: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return queue.view(session, services.builds.cancel(session, build))


def _size(services: Services, build: str) -> int:
    path = services.compilers.log_path(build)
    return path.stat().st_size if path.is_file() else 0
