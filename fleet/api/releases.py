"""Routes for what is released: signed metadata, blobs, evidence, models."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlmodel import Session
from starlette.requests import ClientDisconnect

from fleet import agreements, devices, measuring, routed
from fleet.access import Caller
from fleet.api.auth import caller_of, tell
from fleet.errors import Malformed
from fleet.services import Services, services_of
from fleet.store.tables import EvidenceRow
from fleet.trust.repository import ListedRelease
from wire.document import parse_json
from wire.evidence import Evidence

BLOBS = "/api/v1/blobs/"
router = APIRouter(prefix="/api/v1")


class Documents(BaseModel):
    """Signed metadata by name, each the text of a JSON document."""

    documents: dict[str, str]


class OnlineRole(BaseModel):
    """A role whose key the fleet holds."""

    role: str


class Uploaded(BaseModel):
    """A blob that was uploaded before."""

    digest: str


@router.get("/trust")
async def show_trust(request: Request) -> dict[str, Any]:
    """The published documents, the online keys that root and targets must name, and the certificate authorities."""
    services = services_of(request)
    return await services.serial.run(_trust, services)


@router.post("/trust")
async def admit_trust(request: Request, offered: Documents) -> dict[str, Any]:
    """Publish documents signed offline, all of them or none."""
    services = services_of(request)
    tell(request, subject=f"documents {', '.join(sorted(offered.documents))}")
    return await services.serial.run(_admit, services, {n: text.encode() for n, text in offered.documents.items()})


@router.post("/trust/keys", status_code=201)
async def prepare_key(request: Request, online: OnlineRole) -> dict[str, Any]:
    """Make the next key of an online role, unless one waits. It is used once root or targets name it."""
    services = services_of(request)
    tell(request, subject=f"next key of role {online.role}")
    return await services.serial.run(_prepare_key, services, online.role)


@router.head("/blobs/{digest}")
async def has_blob(request: Request, digest: str) -> Response:
    """200 when the blob is here, 404 when not."""
    blobs = services_of(request).blobs
    if not blobs.has(digest):
        return Response(status_code=404)
    return Response(headers={"Content-Length": str(blobs.size(digest))})


@router.put("/blobs/{digest}", status_code=201)
async def put_blob(request: Request, digest: str) -> dict[str, Any]:
    """Store a blob, unless its bytes have another digest."""
    services = services_of(request)
    try:
        # Left by any error, the stack drops what came; syncing a large file must not hold up the loop.
        with ExitStack() as stack:
            receiver = stack.enter_context(services.blobs.receive(digest, limit=services.settings.max_blob))
            async for piece in request.stream():
                receiver.write(piece)
            await asyncio.to_thread(stack.pop_all().close)
    except ClientDisconnect as e:
        raise Malformed(f"blob {digest}: the connection ended before its last byte: send it again") from e
    return {"digest": digest, "size": services.blobs.size(digest)}


@router.post("/evidence", status_code=201)
async def add_evidence(request: Request, uploaded: Uploaded) -> dict[str, Any]:
    """Take an uploaded `results.json` as the evidence of the bundle that it names."""
    services = services_of(request)
    return await services.serial.run(_add_evidence, services, uploaded.digest)


@router.get("/models")
async def list_models(request: Request) -> list[dict[str, Any]]:
    """Every release, with its evidence, what devices measured of it, and how many run it."""
    services = services_of(request)
    return await services.serial.run(_list_models, services, caller_of(request))


def _trust(services: Services) -> dict[str, Any]:
    documents = {name: data.decode() for name, data in services.repository.published.documents.items()}
    return {
        "documents": documents,
        "online": services.keys.public(),
        "next": services.keys.public_next(),
        "authorities": services.authority.pems(),
    }


def _admit(services: Services, documents: dict[str, bytes]) -> dict[str, Any]:
    desired: list[str] = []
    commands: list[str] = []

    def resign(session: Session) -> None:
        desired.extend(services.rollouts.desired.sign_all_again(session))
        commands.extend(services.commands.refresh(session))

    services.repository.admit(documents, resign)
    services.outbox.trust()
    services.outbox.desired(desired)
    services.outbox.commands(commands)
    return _trust(services)


def _prepare_key(services: Services, role: str) -> dict[str, Any]:
    services.keys.prepare(role)
    return _trust(services)


def _add_evidence(services: Services, digest: str) -> dict[str, Any]:
    evidence = Evidence.from_bytes(services.blobs.read(digest, size=Evidence.LIMIT + 1))
    with services.database.transaction() as session:
        document = evidence.to_bytes().decode()
        session.merge(EvidenceRow(subject=evidence.subject, digest=digest, document=document))
    return {"digest": digest, "subject": evidence.subject, "target": evidence.target}


def _list_models(services: Services, caller: Caller) -> list[dict[str, Any]]:
    with services.database.transaction() as session:
        active = devices.active_counts(session, services.hearing())
        measured = measuring.by_digest(session, caller)
        agreed, routes = agreements.by_digest(session), routed.by_digest(session)
        rows = {t: session.get(EvidenceRow, r.release.digest) for t, r in services.repository.releases.items()}
    return [
        {
            **_model(
                listed, rows[target], measured.get(listed.release.digest, []), active.get(listed.release.digest, (0, 0))
            ),
            "agreement": agreed.get(listed.release.digest),
            "routes": routes.get(listed.release.digest, {}),
        }
        for target, listed in sorted(services.repository.releases.items())
    ]


def _model(
    listed: ListedRelease, evidence: EvidenceRow | None, measured: list[dict[str, Any]], count: tuple[int, int]
) -> dict[str, Any]:
    release, manifest = listed.release, listed.manifest
    return {
        "target": release.target,
        "digest": release.digest,
        "family": manifest.family,
        "name": manifest.name,
        "version": manifest.version,
        "profile": manifest.profile,
        "runtime": manifest.runtime,
        "precision": manifest.precision,
        "bytes": manifest.size,
        "counter": release.counter,
        "evidence": _parsed(evidence),
        "measured": measured,
        "devices": count[0],
        "devices_online": count[1],
    }


def _parsed(row: EvidenceRow | None) -> Any:
    return parse_json(row.document.encode(), what="evidence", limit=Evidence.LIMIT) if row else None
