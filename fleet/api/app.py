"""The HTTP application: routers put together, errors as JSON, limits. The only place that knows status codes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fleet import errors
from fleet.api import alerts as api_alerts
from fleet.api import audit as api_audit
from fleet.api import authorities as api_authorities
from fleet.api import batches as api_batches
from fleet.api import blobs as api_blobs
from fleet.api import builds as api_builds
from fleet.api import commands as api_commands
from fleet.api import console as api_console
from fleet.api import datasets as api_datasets
from fleet.api import devices as api_devices
from fleet.api import drift as api_drift
from fleet.api import est, gateway, gateway_admin
from fleet.api import evidence as api_evidence
from fleet.api import inventory as api_inventory
from fleet.api import measure as api_measure
from fleet.api import metrics as api_metrics
from fleet.api import people as api_people
from fleet.api import registry as api_registry
from fleet.api import releases as api_releases
from fleet.api import rollouts as api_rollouts
from fleet.api import shadows as api_shadows
from fleet.api import status as api_status
from fleet.api.auth import authorize, visit_of
from fleet.api.gate import Gate
from fleet.api.limits import Door
from fleet.api.statuses import STATUS, status_of
from fleet.services import Services
from wire import errors as wire_errors

_log = logging.getLogger(__name__)

ROUTERS = tuple(
    m.router
    for m in (
        # The gateway comes first: each router before it costs every request of it some microseconds.
        *(gateway, gateway_admin, api_status, api_metrics, api_alerts, est, api_devices, api_inventory, api_batches),
        *(api_commands, api_authorities, api_releases, api_registry, api_rollouts, api_people, api_audit),
        *(api_datasets, api_builds, api_measure, api_evidence, api_drift, api_shadows, api_blobs, api_console),
    )
)
_CODES = {404: "not-found", 405: "malformed"}


class Error(BaseModel):
    """What went wrong: a code for programs, a message for people that says what to do."""

    code: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: Error


_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": name} for status, name in sorted(set(STATUS.values()))
}


def description() -> dict[str, Any]:
    """The OpenAPI description of every route: `python -m fleet openapi` prints it, no fleet serves it."""
    return _routes().openapi()


def _routes() -> FastAPI:
    app = FastAPI(
        title="Shoal fleet",
        version=version("shoal"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # Ours are of our own making; to ask at each request whether somebody wants FastAPI's costs more than a filter.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        dependencies=[Depends(authorize)],
        responses=_RESPONSES,
    )
    for router in ROUTERS:
        app.include_router(router)
    return app


def create_app(services: Services) -> FastAPI:
    """The application. No documentation routes: a fleet in production shows none."""
    app = _routes()
    app.state.services = services
    app.add_exception_handler(errors.FleetError, _known_error)
    app.add_exception_handler(wire_errors.WireError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, services=services, answer=_known_error, direct=gateway.DIRECT)
    # The one that was added last stands outermost: what comes too fast is turned away before anybody asks who it is.
    app.add_middleware(
        Door,
        rate=services.settings.http_rate,
        body=services.settings.max_body,
        blobs=api_releases.BLOBS,
        answer=_answer,
    )
    return app


def _answer(error: Exception) -> JSONResponse:
    status, code = status_of(error)
    headers = {"WWW-Authenticate": 'Basic realm="shoal", Bearer'} if status == 401 else {}
    if isinstance(error, errors.TooMany | errors.UpstreamShut | errors.NotJudged):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return _json(status, code, str(error), headers)


def _json(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    value: dict[str, Any] = {"error": {"code": code, "message": message}}
    return JSONResponse(value, status_code=status, headers=headers)


def _one_line(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))


async def _known_error(request: Request, error: Exception) -> JSONResponse:
    # The path as it came, still percent-encoded: a line break in it must not forge a line of the log.
    _log.info("%s %s: %s", request.method, request.scope["raw_path"].decode("latin-1"), _one_line(error))
    visit_of(request).fault = str(error)
    return _answer(error)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _json(400, "malformed", f"{request.method} {request.url.path}: {faults}")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "malformed")
    return _json(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
