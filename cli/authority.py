"""`shoal authority`: the certificate authorities of the fleet, and the change from one to the next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Fleet
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, console, show, table
from wire.units import instant

app = typer.Typer(help="The authorities that vouch for devices, broker and HTTPS port.", no_args_is_help=True)

ROUTE = "/api/v1/authorities"
_STATE_STYLE = {"in use": "green", "next": "yellow", "old": "dim"}
_WARN_DAYS = 365

Chosen = Annotated[str, typer.Argument(help="Fingerprint, or how it begins; 'shoal authority list' shows them.")]


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List every authority that is believed, and how many devices use a certificate of it."""
    _show(Fleet.connect(data).get(ROUTE), as_json)


@app.command("next")
def next_(data: Data = None, as_json: Json = False) -> None:
    """Make the next authority. Devices learn of it when the offline signers name it in targets metadata."""
    _show(Fleet.connect(data).post(ROUTE, {}), as_json)
    if not as_json:
        console.print("[dim]Have it signed: shoal release fetch, rotate authorities, publish. Then: authority use[/]")


@app.command()
def use(fingerprint: Chosen, data: Data = None, as_json: Json = False) -> None:
    """Issue from another authority from now on; the one in use stays believed until it is removed."""
    fleet = Fleet.connect(data)
    _show(fleet.post(f"{ROUTE}/{_whole(fleet, fingerprint)}/use", {}), as_json)


@app.command()
def remove(
    fingerprint: Chosen,
    force: Annotated[bool, typer.Option("--force", help="Also while devices use its certificates.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Believe an authority no longer. Devices that still use a certificate of it must be enrolled again."""
    fleet = Fleet.connect(data)
    _show(fleet.delete(f"{ROUTE}/{_whole(fleet, fingerprint)}{'?force=true' if force else ''}"), as_json)


def _whole(fleet: Fleet, beginning: str) -> str:
    """The one fingerprint that begins so. Raises `BadInput`."""
    found = [a["fingerprint"] for a in fleet.get(ROUTE) if a["fingerprint"].startswith(beginning.lower())]
    if len(found) != 1:
        raise BadInput(f"{beginning!r}: {len(found)} authorities begin so: see 'shoal authority list'")
    return str(found[0])


def _show(authorities: list[dict[str, Any]], as_json: bool) -> None:
    show(authorities, as_json, _view(authorities, datetime.now(UTC)))


def _view(authorities: list[dict[str, Any]], now: datetime) -> RenderableType:
    columns = ("Fingerprint", "Subject", "State", "Signed for devices", "Expires", "#Devices")
    rows = [
        [
            a["fingerprint"][:16],
            a["subject"],
            f"[{_STATE_STYLE[a['state']]}]{a['state']}[/]",
            "yes" if a["named"] else "no",
            _expires(a["expires"], now),
            a["devices"],
        ]
        for a in authorities
    ]
    return table("Certificate authorities", columns, rows)


def _expires(text: str, now: datetime) -> str:
    days = (instant(text) - now).days
    return f"{text[:10]} [yellow]in {days} days[/]" if days < _WARN_DAYS else text[:10]
