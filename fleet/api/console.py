"""The console: static files for a browser, which then asks the API as anybody else does.

They say nothing of the fleet, so they are public. The policy lets the page run our script only, and talk to us only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Response

from fleet.errors import NotFound

router = APIRouter(prefix="/console")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES: Final[Mapping[str, str]] = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}


@router.get("", response_class=Response, responses={200: {"content": {"text/html": {}}}})
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/{name}", response_class=Response, responses={200: {"content": {"text/css": {}, "text/javascript": {}}}})
async def part(name: str) -> Response:
    """Its style and its script. Raises `NotFound`."""
    if name not in ("style.css", "app.js"):
        raise NotFound(f"console: there is no {name[:40]!r}")
    return _file(name)


def _file(name: str) -> Response:
    return Response(_read(name), media_type=_TYPES[name], headers=dict(HEADERS))


@cache
def _read(name: str) -> bytes:
    return (files("fleet.console") / name).read_bytes()
