"""The HTTP application: routers put together, errors as JSON, limits. The only place that knows status codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet import errors
from fleet.api import devices as api_devices
from fleet.api import est, gateway
from fleet.api import releases as api_releases
from fleet.api import rollouts as api_rollouts
from fleet.api import status as api_status
from fleet.services import Services
from wire import errors as wire_errors

_log = logging.getLogger(__name__)

STATUS: Mapping[type[Exception], tuple[int, str]] = {
    errors.Malformed: (400, "malformed"),
    errors.TooLarge: (413, "too-large"),
    errors.Untrusted: (422, "untrusted"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.Forbidden: (403, "forbidden"),
    errors.Incompatible: (422, "incompatible"),
    errors.NotFound: (404, "not-found"),
    errors.Conflict: (409, "conflict"),
    errors.Unavailable: (503, "unavailable"),
    errors.StorageFull: (507, "unavailable"),
    errors.UpstreamDown: (502, "unavailable"),
    errors.UpstreamSlow: (504, "unavailable"),
    wire_errors.Malformed: (400, "malformed"),
    wire_errors.Untrusted: (422, "untrusted"),
    wire_errors.Incompatible: (422, "incompatible"),
}
ROUTERS = tuple(m.router for m in (api_status, est, gateway, api_devices, api_releases, api_rollouts))
_CODES = {404: "not-found", 405: "malformed"}


def create_app(services: Services) -> FastAPI:
    """The application. No documentation routes: a fleet in production shows none."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.services = services
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(errors.FleetError, _known_error)
    app.add_exception_handler(wire_errors.WireError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(BodyLimit, limit=services.settings.max_body)
    return app


class BodyLimit:
    """Ends a request whose body is over the limit, announced or not. Uploads of blobs have a limit of their own."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http" or scope["path"].startswith(api_releases.BLOBS):
            await self._app(scope, receive, send)
            return
        announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
        if announced > self._limit:
            await _answer(self._error(scope))(scope, receive, send)
            return
        await self._app(scope, self._counted(scope, receive), send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise self._error(scope)
            return message

        return counted

    def _error(self, scope: Scope) -> errors.TooLarge:
        return errors.TooLarge(f"{scope['path']}: the body is over {self._limit} bytes: raise the setting max_body")


def _answer(error: Exception) -> JSONResponse:
    status, code = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers = {"WWW-Authenticate": 'Basic realm="shoal", Bearer'} if status == 401 else None
    return _json(status, code, str(error), headers)


def _json(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    value: dict[str, Any] = {"error": {"code": code, "message": message}}
    return JSONResponse(value, status_code=status, headers=headers)


def _one_line(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))


async def _known_error(request: Request, error: Exception) -> JSONResponse:
    # The path as it came, still percent-encoded: a line break in it must not forge a line of the log.
    _log.info("%s %s: %s", request.method, request.scope["raw_path"].decode("latin-1"), _one_line(error))
    return _answer(error)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return _json(400, "malformed", f"{request.method} {request.url.path}: {faults}")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "malformed")
    return _json(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
