"""Routes for what builds need: data sets with licence and use, and source models. Files come as blobs before."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from fleet.api.auth import caller_of, tell
from fleet.builds import datasets, sources
from fleet.builds.content import ExamplesFile, read_examples
from fleet.builds.datasets import NewDataset
from fleet.builds.sources import CheckedSource
from fleet.services import Services, services_of
from wire.lineage import Use
from wire.units import show_instant

router = APIRouter(prefix="/api/v1")


class DatasetBody(BaseModel):
    """An uploaded file of examples: its digest, a name, an SPDX licence expression or `unknown`, and what it is for."""

    digest: str
    name: str
    licence: str
    use: Use


class SourceBody(BaseModel):
    """Uploaded files of a source model: digests by path. One `.tflite`, one `.onnx` with its external data, or a folder
    in Hugging Face layout with safetensors.
    """

    name: str
    files: Annotated[dict[str, str], Field(min_length=1, max_length=sources.MOST_FILES)]


@router.post("/datasets", status_code=201)
async def add_dataset(request: Request, body: DatasetBody) -> dict[str, Any]:
    """Register an uploaded file of examples for good. The same again is no change."""
    services = services_of(request)
    tell(request, subject=f"data set {body.name[:64]}")
    new = NewDataset(**body.model_dump())
    size = services.blobs.size(new.digest)
    found = await asyncio.to_thread(read_examples, services.blobs.path(new.digest), new.name)
    return await services.serial.run(_add_dataset, services, new, found, size, caller_of(request).name)


@router.get("/datasets")
async def list_datasets(request: Request) -> list[dict[str, Any]]:
    """Every data set, by name."""
    services = services_of(request)
    return await services.serial.run(_list_datasets, services)


@router.get("/datasets/{dataset}")
async def show_dataset(request: Request, dataset: str) -> dict[str, Any]:
    """A data set by name or digest."""
    services = services_of(request)
    return await services.serial.run(_show_dataset, services, dataset)


@router.post("/sources", status_code=201)
async def add_source(request: Request, body: SourceBody) -> dict[str, Any]:
    """Register uploaded files as a source model: safetensors, ONNX or TFLite, checked by content."""
    services = services_of(request)
    tell(request, subject=f"source {body.name[:64]}")
    limit = services.settings.max_source
    checked = await asyncio.to_thread(sources.describe, body.files, services.blobs, limit)
    return await services.serial.run(_add_source, services, checked, body.name, caller_of(request).name)


@router.get("/sources")
async def list_sources(request: Request) -> list[dict[str, Any]]:
    """Every source, the newest first."""
    services = services_of(request)
    return await services.serial.run(_list_sources, services)


def _add_dataset(services: Services, new: NewDataset, found: ExamplesFile, size: int, who: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return datasets.view(datasets.add(session, new, found, size, who, show_instant(services.clock())))


def _list_datasets(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [datasets.view(row) for row in datasets.all_datasets(session)]


def _show_dataset(services: Services, dataset: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return datasets.view(datasets.find(session, dataset))


def _add_source(services: Services, checked: CheckedSource, name: str, who: str) -> dict[str, Any]:
    with services.database.transaction() as session:
        return sources.view(sources.add(session, checked, name, who, show_instant(services.clock())))


def _list_sources(services: Services) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        return [sources.view(row) for row in sources.all_sources(session)]
