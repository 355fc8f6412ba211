"""`shoal up`: everything a first day needs, in one process."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.client import default_data
from cli.errors import BadInput
from cli.options import Data
from cli.output import Json, show

if TYPE_CHECKING:
    from fleet.up import Running


def up(
    data: Data = None,
    https: Annotated[str | None, typer.Option(help="Address:port of the HTTPS API. [default: 0.0.0.0:8443]")] = None,
    broker: Annotated[str | None, typer.Option(help="Address:port of the MQTT broker. [default: 0.0.0.0:8883]")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: NAME=VALUE. May be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the fleet: HTTPS API, database, certificate authority and broker. Ctrl-C stops all of it."""
    from fleet.settings import load  # noqa: PLC0415
    from fleet.up import run  # noqa: PLC0415

    overrides: dict[str, object] = dict(_pair(text) for text in assignments or ())
    for name, address in (("https", https), ("broker", broker)):
        if address is not None:
            overrides[f"{name}_host"], overrides[f"{name}_port"] = _address(address, name)
    settings = load(data or default_data(), environ=os.environ, overrides=overrides)
    sys.exit(run(settings, announce=partial(_announce, as_json=as_json)))


def _announce(running: Running, *, as_json: bool) -> None:
    value = {"url": running.url, "broker": running.broker, "data": str(running.data)}
    view = (
        f"[bold]The fleet is up.[/] API {running.url}, broker {running.broker}, data {running.data}\n"
        "New here? In another terminal: shoal release init, shoal device kit, shoal status. Ctrl-C stops all of it."
    )
    show(value, as_json, view)
    sys.stdout.flush()


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--set {text!r}: expected NAME=VALUE, such as --set 'transfer_rate=8 MiB'")
    return name.strip(), value.strip()


def _address(text: str, option: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise BadInput(f"--{option} {text!r}: expected address:port, such as 0.0.0.0:8443")
    return host, port
